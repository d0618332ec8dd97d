"""Dropout whose mask costs little on a CPU.

`nn.Dropout` draws a number for each value one after the other, up to a fifth of a training step here.
This one takes four decisions from each 64-bit draw of the same generator, to a resolution of 2^-16.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from model.batch_part import draw_rows, is_part


class Dropout(nn.Module):
    """Zeroes a share of the values while training and scales up the rest."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Any shape, kept; of a batch's part, (B, ...)."""
        if not self.training or self.p == 0:
            return values
        if values.device.type == "cpu":
            keep = draw_rows(lambda rows: keep_mask(_resized(values.shape, rows), self.p), len(values))
            return values * keep.to(values.dtype).mul_(1 / (1 - self.p))
        if not is_part():
            return F.dropout(values, self.p)

        def keep_scaled(rows: int) -> torch.Tensor:
            return F.dropout(values.new_ones(_resized(values.shape, rows)), self.p)

        return values * draw_rows(keep_scaled, len(values))

    def extra_repr(self) -> str:
        return f"{self.p}"


def _resized(shape: torch.Size, num_rows: int) -> torch.Size:
    return torch.Size((num_rows, *shape[1:]))


def keep_mask(shape: torch.Size, share: float) -> torch.Tensor:
    """True with probability 1 - share, rounded to 2^-16.   -> bool of `shape`"""
    count = shape.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    threshold = round(share * 2**16) - 2**15
    return (draws.view(torch.int16)[:count] >= threshold).view(shape)
