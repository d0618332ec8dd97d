"""Pinned host memory in a ring, so that the host writes the next batch while the last one still travels.

Not run: no GPU was at hand when this was written; `tests/model/engines/gpu` runs it on one.
"""

from __future__ import annotations

import torch

_SLOTS = 3


class PinnedRing:
    """Slots of `size` 64-bit integers, each free again once its copy to the device is done."""

    def __init__(self, size: int) -> None:
        self._slots = [torch.zeros(size, dtype=torch.int64, pin_memory=True) for _ in range(_SLOTS)]
        self._sent = [torch.cuda.Event() for _ in range(_SLOTS)]
        self._at = 0

    def slot(self) -> torch.Tensor:
        """The next slot, waiting for its last copy.   -> (size,) int64"""
        self._at = (self._at + 1) % _SLOTS
        self._sent[self._at].synchronize()
        return self._slots[self._at]

    def send(self, to: torch.Tensor) -> None:
        """Queue the copy of the slot that was handed out last.   to: (size,) on the device"""
        to.copy_(self._slots[self._at], non_blocking=True)
        self._sent[self._at].record()
