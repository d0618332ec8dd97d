"""Drift between adjacent behaviours: what the diffusion generates in place of the items (Eq. 10, 11, 18)."""

from __future__ import annotations

import torch


def prepare_drift(sequence: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """z_0 = X_{2:n+1} - X_{1:n} (Eq. 10, 11).

    sequence: (B, N, D) X_{1:n}   following: (B, N, D) X_{2:n+1}, the behaviour after each   -> (B, N, D)
    """
    return following - sequence


def apply_drift(drift: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
    """x̂ after every position: z_0 + X_{1:n} (Eq. 18 before its Slice).

    drift: (B, N, D)   sequence: (B, N, D)   -> (B, N, D); row j predicts the behaviour after j
    """
    return sequence + drift


def slice_positions(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows of `values` at `positions` (Eq. 18's Slice, which takes the last one).

    values: (B, N, D)   positions: (B, P) long   -> (B, P, D)
    """
    return values.gather(1, positions[:, :, None].expand(-1, -1, values.shape[2]))
