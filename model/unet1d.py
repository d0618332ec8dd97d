"""The approximator f_θ: a 1-D U-Net that predicts the drift from its noised form (Eq. 15, 16).

Tensors are (B, N, channels), so that a convolution is a matrix product over shifted copies. With
`causal` padding position j reads positions up to j only: then every position is a prediction of an
unseen behaviour and one pass trains them all. With `same` padding, the paper's plain U-Net, position
j sees its own answer in X_{j+1}, and only the last position predicts.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Padding = Literal["causal", "same"]
KERNEL_SIZE = 3


def step_embedding(step: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoids of the diffusion step, the "r" of Eq. 23's μ_θ(z_r, r).   step: (B,) -> (B, dim)"""
    frequency = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=step.device) / (dim // 2))
    angle = step[:, None] * frequency  # (B, dim / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Convolution(nn.Module):
    """Kernel 3 over the sequence.   (B, N, in) -> (B, N, out)"""

    def __init__(self, in_channels: int, out_channels: int, padding: Padding) -> None:
        super().__init__()
        self.linear = nn.Linear(KERNEL_SIZE * in_channels, out_channels)
        self.before = KERNEL_SIZE - 1 if padding == "causal" else KERNEL_SIZE // 2

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        length = values.shape[1]
        padded = F.pad(values, (0, 0, self.before, KERNEL_SIZE - 1 - self.before))
        taps = [padded[:, offset : offset + length] for offset in range(KERNEL_SIZE)]
        return self.linear(torch.cat(taps, dim=-1))


class Block(nn.Module):
    """Convolution, plus what the step says, then SiLU.   (B, N, in) -> (B, N, out)"""

    def __init__(self, in_channels: int, out_channels: int, step_channels: int, padding: Padding) -> None:
        super().__init__()
        self.convolution = Convolution(in_channels, out_channels, padding)
        self.of_step = nn.Linear(step_channels, out_channels)

    def forward(self, values: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return F.silu(self.convolution(values) + self.of_step(step)[:, None, :])


def downsample(values: torch.Tensor) -> torch.Tensor:
    """Every second position, the later of each pair.   (B, N, C), N even -> (B, N / 2, C)"""
    return values[:, 1::2]


def upsample(values: torch.Tensor, padding: Padding) -> torch.Tensor:
    """Each position twice; causal: one later, for a pair is known only at its second position.

    (B, N / 2, C) -> (B, N, C)
    """
    doubled = values.repeat_interleave(2, dim=1)
    if padding == "same":
        return doubled
    return F.pad(doubled, (0, 0, 1, 0))[:, :-1]


class UNet1d(nn.Module):
    """Encoder, bottleneck and decoder with skip connections at full, half and quarter length.

    embedding_dim: D   channels: widths at the three lengths
    """

    def __init__(
        self, embedding_dim: int, *, channels: tuple[int, int, int], step_channels: int, padding: Padding
    ) -> None:
        super().__init__()
        full, half, quarter = channels
        self.padding: Padding = padding
        self.step_channels = step_channels
        self.of_step = nn.Sequential(
            nn.Linear(step_channels, step_channels),
            nn.SiLU(),
            nn.Linear(step_channels, step_channels),
            nn.SiLU(),
        )
        self.encode_full = Block(2 * embedding_dim, full, step_channels, padding)
        self.encode_half = Block(full, half, step_channels, padding)
        self.encode_quarter = Block(half, quarter, step_channels, padding)
        self.bottleneck = Block(quarter, quarter, step_channels, padding)
        self.decode_half = Block(quarter + half, half, step_channels, padding)
        self.decode_full = Block(half + full, full, step_channels, padding)
        self.predict = Convolution(full, embedding_dim, padding)

    def forward(
        self,
        noised_drift: torch.Tensor,
        sequence: torch.Tensor,
        step: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """ẑ_0 = U-Net(concat([z_r, X_{1:n}])) (Eq. 15).

        noised_drift: (B, N, D)   sequence: (B, N, D)   step: (B,) in 1..T   -> (B, N, D)
        mask: (B, N) bool, needed with `same` padding so that nothing flows back out of the padding
        """
        length = noised_drift.shape[1]
        extra = -length % 4  # two halvings need a multiple of four; what is added stands after the end
        values = F.pad(torch.cat([noised_drift, sequence], dim=-1), (0, 0, 0, extra))  # (B, N', 2D)
        masks = self._masks(mask, extra)
        embedded_step = self.of_step(step_embedding(step, self.step_channels))
        full = self._keep(self.encode_full(self._keep(values, masks, 0), embedded_step), masks, 0)
        half = self._keep(self.encode_half(downsample(full), embedded_step), masks, 1)
        quarter = self._keep(self.encode_quarter(downsample(half), embedded_step), masks, 2)
        quarter = self._keep(self.bottleneck(quarter, embedded_step), masks, 2)
        half = torch.cat([upsample(quarter, self.padding), half], dim=-1)
        half = self._keep(self.decode_half(half, embedded_step), masks, 1)
        full = torch.cat([upsample(half, self.padding), full], dim=-1)
        full = self._keep(self.decode_full(full, embedded_step), masks, 0)
        return self.predict(full)[:, :length]

    def _masks(self, mask: torch.Tensor | None, extra: int) -> list[torch.Tensor] | None:
        """(B, N', 1), (B, N' / 2, 1) and (B, N' / 4, 1); a pair is real when its first position is."""
        if mask is None:
            return None
        full = F.pad(mask, (0, extra))
        return [full[:, :: 2**level, None] for level in range(3)]

    @staticmethod
    def _keep(values: torch.Tensor, masks: list[torch.Tensor] | None, level: int) -> torch.Tensor:
        return values if masks is None else values * masks[level]
