"""An item table whose rows are spread over the processes of a run, for tables too big for one device.

Process r of R holds every R-th item, with the gradient and the optimiser's state of those alone. A lookup
sends the other processes the ids of their items and gets the rows; the gradient goes the same way back.
Evaluation asks each process about its own items. Only files hold the table whole: it is put together in the
first process's host memory, piece by piece, never on a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn

from model.ranks import Ranks
from model.t2diff import T2Diff
from model.two_tower import TwoTower

ROWS_AT_ONCE = 1 << 16
"""How much of a table travels at once when it is put together."""


class RowShardedTable(nn.Embedding):
    """nn.Embedding of an item table, of which this process has some rows.

    weight: (items here + 1, D) row 0 padding, as everywhere, then item indices rank + 1, rank + 1 + R, ...
    """

    def __init__(self, rows_here: torch.Tensor, num_items: int, ranks: Ranks) -> None:
        super().__init__(len(rows_here), rows_here.shape[1], padding_idx=0, _weight=rows_here)
        self.num_items = num_items
        self.ranks = ranks

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """Every process calls this together, each with an index of its own.   (...) long -> (..., D)"""
        wanted, place = torch.unique(index, return_inverse=True)  # (U,), (...)
        owner = (wanted - 1) % self.ranks.count
        order = torch.argsort(owner, stable=True)
        asked = torch.bincount(owner, minlength=self.ranks.count)  # of each process
        answered = torch.empty_like(asked)  # to each process
        distributed.all_to_all_single(answered, asked)
        to_ask, to_answer = asked.tolist(), answered.tolist()
        items = _exchange(wanted[order], to_ask, to_answer)
        answers = super().forward((items - 1) // self.ranks.count + 1)  # padding's row is 0 here too
        rows = _Exchange.apply(answers, to_answer, to_ask)  # (U, D) in `order`
        return rows[torch.argsort(order)[place]]

    def rank_of(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`evaluation.rank_of` when each process has the scores of its own items.

        scores: (B, items here)   target: (B,) columns of all M items   -> (B,)
        """
        is_here = target % self.ranks.count == self.ranks.rank
        column = torch.where(is_here, target // self.ranks.count, 0)
        here = scores.gather(1, column[:, None])[:, 0]  # (B,)
        of_target = self.ranks.add_up(torch.where(is_here, here, 0.0))
        not_behind = ~(scores < of_target[:, None])
        return self.ranks.add_up(not_behind.sum(dim=1)).clamp(min=1)

    def whole(self, rows_here: torch.Tensor) -> torch.Tensor:
        """Every process's rows in the table's order, in the first one's host memory; elsewhere nothing.

        rows_here: (items here + 1, D), `weight` or something like it   -> (M + 1, D)
        """
        table = torch.empty(self.num_items + 1 if self.ranks.is_first else 1, rows_here.shape[1])
        table[0] = rows_here[0]
        most = -(-self.num_items // self.ranks.count)
        for first in range(0, most, ROWS_AT_ONCE):
            sent = rows_here.new_zeros(min(ROWS_AT_ONCE, most - first), rows_here.shape[1])
            piece = rows_here[1 + first : 1 + first + len(sent)]
            sent[: len(piece)] = piece
            got = [torch.empty_like(sent) for _ in range(self.ranks.count)] if self.ranks.is_first else None
            distributed.gather(sent, got)
            for rank, part in enumerate(got or []):
                into = table[1 + rank :: self.ranks.count][first : first + len(sent)]
                into.copy_(part[: len(into)])
        return table


def check_can_shard(model: TwoTower, ranks: Ranks) -> None:
    """Raise ValueError for one process, and for a model whose softmax reads every row of its table."""
    if ranks.count == 1:
        raise ValueError("shard_items: one process has nobody to share the table with; start with torchrun")
    assert isinstance(model, T2Diff)
    if model.num_items <= model.config.max_full_softmax_items:
        raise ValueError(
            f"shard_items: the softmax over {model.num_items:,} items reads the whole table; it is sampled "
            f"above max_full_softmax_items (now {model.config.max_full_softmax_items:,}, --set changes it)"
        )


def shard_table(model: TwoTower, optimizer: torch.optim.Optimizer, ranks: Ranks) -> RowShardedTable:
    """Keep this process's rows of the item table and of the optimiser's state of it; move all to its device.

    model: that `check_can_shard` lets pass, whole and on the CPU
    """
    assert isinstance(model, T2Diff)
    table = model.item_table.weight
    sharded = RowShardedTable(_rows_here(table.detach(), ranks), model.num_items, ranks)
    entry = optimizer.state.pop(table, {})
    if entry:
        optimizer.state[sharded.weight] = {
            key: value if key == "step" else _rows_here(value, ranks) for key, value in entry.items()
        }
    for group in optimizer.param_groups:
        group["params"] = [sharded.weight if one is table else one for one in group["params"]]
    model.item_table = sharded
    model.to(ranks.device)
    for entry in optimizer.state.values():
        entry.update({key: value.to(ranks.device) for key, value in entry.items() if key != "step"})
    return sharded


@contextmanager
def assembled(model: TwoTower, optimizer: torch.optim.Optimizer, table: RowShardedTable) -> Iterator[None]:
    """`model` and `optimizer` with the whole table in the first process's host memory, for writing files.

    Every process calls this together; what is inside is for the first one.
    """
    entry: dict[str, Any] = {
        key: value if key == "step" else table.whole(value)
        for key, value in optimizer.state.get(table.weight, {}).items()
    }
    weight = table.whole(table.weight.detach())
    if not table.ranks.is_first:
        yield
        return
    whole = nn.Embedding(len(weight), weight.shape[1], padding_idx=0, _weight=weight)
    assert isinstance(model, T2Diff)
    model.item_table = whole
    if entry:
        optimizer.state[whole.weight] = entry
    try:
        yield
    finally:
        model.item_table = table
        optimizer.state.pop(whole.weight, None)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, table: RowShardedTable) -> None:
    """`clip_grad_norm_` over every process's rows of the table, and the other parameters once."""
    parameters = list(parameters)
    others = [one.grad for one in parameters if one is not table.weight and one.grad is not None]
    rest = torch.nn.utils.get_total_norm(others).square()
    assert table.weight.grad is not None
    here = torch.linalg.vector_norm(table.weight.grad).square()
    norm = (rest + table.ranks.add_up(here)).sqrt()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def _rows_here(table: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """(M + 1, D) -> (items here + 1, D)"""
    return torch.cat([table[:1], table[1 + ranks.rank :: ranks.count]])


def _exchange(rows: torch.Tensor, to_send: list[int], to_get: list[int]) -> torch.Tensor:
    """Send each process its piece of `rows`, in order, and get one of each.   (sum to_send, ...)"""
    got = rows.new_empty(sum(to_get), *rows.shape[1:])
    distributed.all_to_all_single(got, rows.contiguous(), to_get, to_send)
    return got


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, to_send: list[int], to_get: list[int]) -> torch.Tensor:
        ctx.sizes = to_send, to_get
        return _exchange(rows, to_send, to_get)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        to_send, to_get = ctx.sizes
        return _exchange(gradient, to_get, to_send), None, None
