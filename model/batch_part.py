"""The part of a batch that one process computes, such that the parts add up to what one process would get.

Its random numbers are its rows of what the whole batch draws: every process draws for the whole batch, from
generators in the same state, and keeps its own rows. So each process's generator stays where that of a run
in one process would be. Its means are of the whole batch: each is scaled to its share of the rows counted.
Outside of `computing_part`, a batch is its own whole and nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BatchPart:
    """Some rows of a batch.

    rows: which, without a step   size: of the whole batch, B   add_up: the sum of a tensor over all parts
    """

    rows: slice
    size: int
    add_up: Callable[[torch.Tensor], torch.Tensor]


_part: ContextVar[BatchPart | None] = ContextVar("part", default=None)


@contextmanager
def computing_part(part: BatchPart) -> Iterator[None]:
    """What is drawn and averaged inside is of `part`."""
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def draw_rows(draw: Callable[[int], torch.Tensor], num_rows: int) -> torch.Tensor:
    """`draw(num_rows)`, or this part's rows of what `draw` gives the whole batch.

    draw: takes a number of rows, gives a tensor of so many
    num_rows: a row or more for each sequence, those of a sequence beside each other   -> (num_rows, ...)
    """
    part = _part.get()
    if part is None:
        return draw(num_rows)
    each, rest = divmod(num_rows, part.rows.stop - part.rows.start)
    assert rest == 0, f"{num_rows} rows are not of the {part.rows.stop - part.rows.start} sequences here"
    return draw(each * part.size)[each * part.rows.start : each * part.rows.stop]


def is_part() -> bool:
    """Whether a part is being computed."""
    return _part.get() is not None


def mean_of_whole(mean: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """A mean over `count` values here, scaled so that the parts' add up to that over all.   -> scalar"""
    part = _part.get()
    if part is None:
        return mean
    here = torch.as_tensor(count, device=mean.device)
    return mean * (here / part.add_up(here).clamp(min=1))
