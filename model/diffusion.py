"""Diffusion and reverse of the drift (Eq. 12, 14, 17; Algorithms 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from model.batch_part import draw_rows
from model.noise import Noise
from model.noise_schedule import SAMPLERS, NoiseSchedule

Approximator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""f_θ(noised_drift (B, N, D), sequence (B, N, D), step (B,)) -> predicted_drift (B, N, D)   (Eq. 16)"""


def sample_steps(batch_size: int, num_steps: int, device: torch.device) -> torch.Tensor:
    """r ~ Uniform({1, ..., T}) (Eq. 12).   -> (B,) long"""
    return draw_rows(lambda rows: torch.randint(1, num_steps + 1, (rows,), device=device), batch_size)


def diffuse(
    drift: torch.Tensor, step: torch.Tensor, noise: torch.Tensor, schedule: NoiseSchedule
) -> torch.Tensor:
    """Noise the drift to `step` in one jump (Eq. 14).

    drift: (B, N, D) z_0   step: (B,) r in 1..T   noise: (B, N, D) ε   -> (B, N, D) z_r
    """
    alpha_cumprod = schedule.alphas_cumprod[step - 1][:, None, None]  # (B, 1, 1)
    return alpha_cumprod.sqrt() * drift + (1 - alpha_cumprod).sqrt() * noise


def reverse_step(
    noised_drift: torch.Tensor,
    predicted_drift: torch.Tensor,
    noise: torch.Tensor | None,
    *,
    step: int,
    previous_step: int,
    schedule: NoiseSchedule,
    sampler: str = "ddpm",
) -> torch.Tensor:
    """Fusion: one draw from p(z_s | z_t, ẑ_0) (Eq. 17), with √β̃ as in DDPM where the paper prints β̃.

    noised_drift: (B, N, D) z_t   predicted_drift: (B, N, D) ẑ_0   noise: (B, N, D) ε', None when s = 0
    step, previous_step: t > s >= 0   sampler: a name of SAMPLERS   -> (B, N, D) z_s
    """
    of_predicted, of_current, variance = SAMPLERS[sampler](schedule, step, previous_step)
    posterior_mean = of_predicted * predicted_drift + of_current * noised_drift
    if noise is None:
        return posterior_mean
    return posterior_mean + math.sqrt(variance) * noise


def reverse(
    approximator: Approximator,
    sequence: torch.Tensor,
    noise: Noise,
    *,
    schedule: NoiseSchedule,
    steps: Sequence[int] | None = None,
    sampler: str = "ddpm",
) -> torch.Tensor:
    """Generate the drift from noise (Algorithm 2). This plain loop is the reference of every faster one.

    sequence: (B, N, D) X_{1:n}, the condition   noise: draws (B, N, D) for a step
    steps: the steps visited, descending; all of T..1 when None
    sampler: `ddpm` draws noise at every step, `ddim` only z_T   -> (B, N, D) z_0
    """
    visited = list(steps) if steps is not None else list(range(schedule.num_steps, 0, -1))
    drift = noise(visited[0])  # z_T
    for step, previous_step in zip(visited, [*visited[1:], 0], strict=True):
        step_of_each = torch.full((len(sequence),), step, device=sequence.device)
        predicted_drift = approximator(drift, sequence, step_of_each)
        drift = reverse_step(
            drift,
            predicted_drift,
            noise(previous_step) if previous_step > 0 and sampler == "ddpm" else None,
            step=step,
            previous_step=previous_step,
            schedule=schedule,
            sampler=sampler,
        )
    return drift


def strided_steps(num_steps: int, num_visited: int) -> list[int]:
    """`num_visited` of the steps T..1, evenly spread from T to 1; a single one is T.

    Ending at step 1 lets a model that was trained through few steps be served with more or fewer.
    """
    if not 1 <= num_visited <= num_steps:
        raise ValueError(f"the number of visited steps must be in 1..{num_steps}, got {num_visited}")
    if num_visited == 1:
        return [num_steps]
    return [round(num_steps - (num_steps - 1) * index / (num_visited - 1)) for index in range(num_visited)]
