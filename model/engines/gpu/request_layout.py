"""A batch of requests as one flat row of integers: one copy to the device, whatever is in it.

A bucket is the batch size that a graph was captured for; what a batch lacks of it is filled with requests
that cost nothing to answer and whose answers are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.batch import PADDING_INDEX, UNKNOWN_TIME, SequenceBatch
from model.noise import route_keys

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def bucket_of(size: int) -> int:
    """The smallest bucket that holds `size` requests. Raises ValueError where none does."""
    for bucket in BUCKETS:
        if 1 <= size <= bucket:
            return bucket
    raise ValueError(f"a batch of {size} requests fits no bucket: give 1 to {BUCKETS[-1]}, or split it")


def parts_of(size: int) -> list[slice]:
    """Rows of a batch, as many at a time as the largest bucket holds."""
    return [slice(first, min(first + BUCKETS[-1], size)) for first in range(0, size, BUCKETS[-1])]


def rounded_up(count: int, *, least: int) -> int:
    """A power of two, at least `least`: few graphs for many counts."""
    return max(least, 1 << max(count - 1, 0).bit_length())


@dataclass(frozen=True)
class Request:
    """Parts of one flat row.

    item_index, timestamp: (B, N)   length, request_time: (B,)   keys: (B * R,)   exclude: (B, E), 0 for none
    """

    item_index: torch.Tensor
    timestamp: torch.Tensor
    length: torch.Tensor
    request_time: torch.Tensor
    keys: torch.Tensor
    exclude: torch.Tensor

    @property
    def batch(self) -> SequenceBatch:
        """The sequences, sharing the row's memory."""
        return SequenceBatch(self.item_index, self.timestamp, self.length, self.request_time)


@dataclass(frozen=True)
class RequestLayout:
    """Where the parts lie.   bucket: B   width: N, the model's longest   routes: R   num_excluded: E"""

    bucket: int
    width: int
    routes: int
    num_excluded: int = 0

    @property
    def size(self) -> int:
        """Integers in all."""
        return self.bucket * (2 * self.width + 2 + self.routes + self.num_excluded)

    def parts(self, flat: torch.Tensor) -> Request:
        """flat: (size,) int64, on any device"""
        B, N = self.bucket, self.width
        sizes = [B * N, B * N, B, B, B * self.routes, B * self.num_excluded]
        items, times, length, request_time, keys, exclude = flat.split(sizes)
        return Request(
            items.view(B, N), times.view(B, N), length, request_time, keys, exclude.view(B, self.num_excluded)
        )

    def write(
        self,
        flat: torch.Tensor,
        batch: SequenceBatch,
        keys: Sequence[int],
        exclude: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        """A batch of up to `bucket` requests, and requests of no consequence behind it.

        flat: (size,) int64 on the host   exclude: item indices a request
        Raises ValueError for a batch that does not fit.
        """
        size, width = batch.item_index.shape
        if size > self.bucket or width > self.width:
            raise ValueError(
                f"a batch of {size} sequences of {width} does not fit {self.bucket} of {self.width}: "
                "collate it with the model's max_length"
            )
        if len(keys) != size:
            raise ValueError(f"keys: {len(keys)} were given for {size} sequences; give one each")
        parts = self.parts(flat)
        parts.item_index.fill_(PADDING_INDEX)[:size, :width] = batch.item_index
        parts.timestamp.fill_(UNKNOWN_TIME)[:size, :width] = batch.timestamp
        parts.length.fill_(1)[:size] = batch.length
        parts.request_time.fill_(UNKNOWN_TIME)[:size] = batch.request_time
        every = np.asarray(route_keys(keys, self.routes), dtype=np.uint64).view(np.int64)
        parts.keys.zero_()[: len(every)] = torch.from_numpy(every)
        parts.exclude.fill_(PADDING_INDEX)
        for row, items in enumerate(exclude or ()):
            if items is not None and len(items):
                parts.exclude[row, : len(items)] = torch.from_numpy(np.asarray(items, dtype=np.int64))
