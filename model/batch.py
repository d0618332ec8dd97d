"""The one batch shape that training and serving share.

Shape legend, used throughout the project:
`B` batch, `N` sequence, `S` session, `H` history, `D` embedding, `T` diffusion steps, `M` items,
`K` candidates.

Sequences are left-aligned: behaviour j of a sequence stands in column j and padding (item index 0)
follows it. Every module of the user tower is causal, so that padding on the right cannot reach a
real position, and position j of a long sequence computes what a sequence cut after j would.
"""

from __future__ import annotations

from collections.abc import Sequence as Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

PADDING_INDEX = 0
"""The item index of padding; real items have indices 1..M."""

UNKNOWN_TIME = -1
"""The timestamp of a behaviour or request whose time is not known."""


class Sequence(NamedTuple):
    """One user's behaviours, oldest first.

    item_index: (N,) integers in 1..M   timestamp: (N,) unix seconds or UNKNOWN_TIME
    request_time: unix seconds at which the next behaviour is asked for, or UNKNOWN_TIME
    """

    item_index: np.ndarray
    timestamp: np.ndarray
    request_time: int = UNKNOWN_TIME


@dataclass(frozen=True)
class SequenceBatch:
    """Padded sequences.

    item_index: (B, N) long, 0 after the end   timestamp: (B, N) long, UNKNOWN_TIME after the end
    length: (B,) long, at least 1   request_time: (B,) long
    target: (B, N) long or None; target[b, j] is the item that follows position j, 0 where no loss is taken
    """

    item_index: torch.Tensor
    timestamp: torch.Tensor
    length: torch.Tensor
    request_time: torch.Tensor
    target: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """(B, N) bool, true at real behaviours."""
        return self.item_index != PADDING_INDEX

    @property
    def next_time(self) -> torch.Tensor:
        """(B, N) the time of the behaviour after each position; the request's time after the last one."""
        following = torch.cat([self.timestamp[:, 1:], self.timestamp[:, :1]], dim=1)  # (B, N)
        return following.scatter(1, (self.length - 1)[:, None], self.request_time[:, None])

    @property
    def next_item(self) -> torch.Tensor:
        """(B, N) the item after each position: the following behaviour, and after the last one its target."""
        following = torch.cat([self.item_index[:, 1:], self.item_index[:, :1]], dim=1)  # (B, N)
        last = (self.length - 1)[:, None]
        if self.target is None:
            return following.scatter(1, last, PADDING_INDEX)
        return following.scatter(1, last, self.target.gather(1, last))

    def rows(self, rows: slice) -> SequenceBatch:
        """Some of the sequences, padded as they are."""
        return SequenceBatch(
            item_index=self.item_index[rows],
            timestamp=self.timestamp[rows],
            length=self.length[rows],
            request_time=self.request_time[rows],
            target=None if self.target is None else self.target[rows],
        )

    def to(self, device: torch.device | str) -> SequenceBatch:
        """The same batch on `device`."""
        target = None if self.target is None else self.target.to(device, non_blocking=True)
        return replace(
            self,
            item_index=self.item_index.to(device, non_blocking=True),
            timestamp=self.timestamp.to(device, non_blocking=True),
            length=self.length.to(device, non_blocking=True),
            request_time=self.request_time.to(device, non_blocking=True),
            target=target,
        )


class PaddedSequences(NamedTuple):
    """The arrays of a `SequenceBatch` without targets: native code needs no tensors, and they cost more.

    item_index: (B, N) int64   timestamp: (B, N) int64   length: (B,) int64   request_time: (B,) int64
    """

    item_index: np.ndarray
    timestamp: np.ndarray
    length: np.ndarray
    request_time: np.ndarray

    def tensors(self) -> SequenceBatch:
        """The same batch, in the same memory."""
        return SequenceBatch(*map(torch.from_numpy, self))


def collate(sequences: Collection[Sequence], *, max_length: int) -> SequenceBatch:
    """Pad the last `max_length` behaviours of each sequence to the longest of them.

    Raises ValueError when there is no sequence or one is empty: such a user has no user embedding.
    """
    return pad(sequences, max_length=max_length).tensors()


def pad(sequences: Collection[Sequence], *, max_length: int) -> PaddedSequences:
    """`collate` into arrays instead of tensors."""
    if not sequences:
        raise ValueError("collate needs at least one sequence, got none")
    lengths = [min(len(sequence.item_index), max_length) for sequence in sequences]
    if min(lengths) == 0:
        raise ValueError(f"sequence {lengths.index(0)} is empty: a user without behaviours has no embedding")
    shape = (len(sequences), max(lengths))
    item_index = np.full(shape, PADDING_INDEX, dtype=np.int64)
    timestamp = np.full(shape, UNKNOWN_TIME, dtype=np.int64)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        item_index[row, :length] = sequence.item_index[-length:]
        timestamp[row, :length] = sequence.timestamp[-length:]
    request_time = [sequence.request_time for sequence in sequences]
    return PaddedSequences(
        item_index, timestamp, np.array(lengths, dtype=np.int64), np.array(request_time, dtype=np.int64)
    )
