"""A column that grows batch by batch and becomes one array without being held twice."""

from __future__ import annotations

import numpy as np

_BLOCK_ROWS = 1 << 22
"""Blocks this large come from the system and go back to it; many small arrays would leave holes behind."""


class GrowingColumn:
    """Values of one dtype in blocks; what a block does not use yet costs no memory."""

    def __init__(self, dtype: type[np.generic], block_rows: int = _BLOCK_ROWS) -> None:
        self._dtype = dtype
        self._block_rows = block_rows
        self._blocks: list[np.ndarray] = []
        self._used = block_rows  # of the last block

    def __len__(self) -> int:
        return (len(self._blocks) - 1) * self._block_rows + self._used

    def append(self, values: np.ndarray) -> None:
        """Add values at the end.   values: (N,)"""
        while len(values):
            if self._used == self._block_rows:
                self._blocks.append(np.empty(self._block_rows, dtype=self._dtype))
                self._used = 0
            fitting = values[: self._block_rows - self._used]
            self._blocks[-1][self._used : self._used + len(fitting)] = fitting
            self._used += len(fitting)
            values = values[len(fitting) :]

    def take(self) -> np.ndarray:
        """All values in one array; each block is let go as soon as it is copied, and the column is empty."""
        joined = np.empty(len(self), dtype=self._dtype)
        self._blocks.reverse()
        for start in range(0, len(joined), self._block_rows):
            part = joined[start : start + self._block_rows]
            part[:] = self._blocks.pop()[: len(part)]
        self._used = self._block_rows
        return joined
