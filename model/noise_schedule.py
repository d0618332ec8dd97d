"""How much noise each diffusion step holds: β schedules (Eq. 13) and what follows from them (Eq. 3, 5, 6).

The paper gives neither a nor b. Every schedule here starts at `beta_start` and ends where
ᾱ_T = `final_alpha_cumprod`, so that z_T is noise whatever the shape and the number of steps, and
schedules are compared at equal ends. For T = 50 and the defaults, `t2diff-model schedules` prints a and b.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

BetaShape = Callable[[int, float, float], torch.Tensor]
"""shape(num_steps, first, last) -> (T,) float64 β_1..β_T"""


def exponential_betas(num_steps: int, first: float, last: float) -> torch.Tensor:
    """β_r = a·e^{b·r} (Eq. 13) with β_1 = first and β_T = last.   -> (T,)"""
    a, b = exponential_constants(num_steps, first, last)
    return a * torch.exp(b * torch.arange(1, num_steps + 1, dtype=torch.float64))


def exponential_constants(num_steps: int, first: float, last: float) -> tuple[float, float]:
    """The a and b of Eq. 13 for given ends."""
    b = math.log(last / first) / max(num_steps - 1, 1)
    return first / math.exp(b), b


def linear_betas(num_steps: int, first: float, last: float) -> torch.Tensor:
    """β_r on a straight line (Table 3, the schedule of DDPM).   -> (T,)"""
    return torch.linspace(first, last, num_steps, dtype=torch.float64)


def logarithmic_betas(num_steps: int, first: float, last: float) -> torch.Tensor:
    """β_r = first + (last - first)·ln r / ln T (Table 3).   -> (T,)"""
    r = torch.arange(1, num_steps + 1, dtype=torch.float64)
    return first + (last - first) * torch.log(r) / math.log(max(num_steps, 2))


BETA_SHAPES: dict[str, BetaShape] = {
    "exp": exponential_betas,
    "linear": linear_betas,
    "log": logarithmic_betas,
}


def solve_last_beta(
    shape: BetaShape, num_steps: int, *, beta_start: float, final_alpha_cumprod: float
) -> float:
    """The β_T for which ᾱ_T = ∏(1 - β_r) is `final_alpha_cumprod`, by bisection."""
    low, high = beta_start, 1.0 - 1e-9
    for _ in range(200):
        middle = (low + high) / 2
        log_alpha_cumprod = torch.log1p(-shape(num_steps, beta_start, middle)).sum().item()
        if log_alpha_cumprod > math.log(final_alpha_cumprod):
            low = middle
        else:
            high = middle
    return high


class NoiseSchedule(nn.Module):
    """β_r and the coefficients derived from it; step r stands at index r - 1.

    Buffers, each (T,) float32: betas, alphas_cumprod (ᾱ_r)
    """

    betas: torch.Tensor
    alphas_cumprod: torch.Tensor

    def __init__(
        self, name: str, num_steps: int, *, beta_start: float = 0.002, final_alpha_cumprod: float = 0.001
    ) -> None:
        super().__init__()
        if name not in BETA_SHAPES:
            raise ValueError(f"schedule must be one of {', '.join(BETA_SHAPES)}, got {name!r}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        shape = BETA_SHAPES[name]
        last = solve_last_beta(
            shape, num_steps, beta_start=beta_start, final_alpha_cumprod=final_alpha_cumprod
        )
        betas = shape(num_steps, beta_start, last)
        self.name = name
        self.num_steps = num_steps
        self.register_buffer("betas", betas.float(), persistent=False)
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, dim=0).float(), persistent=False)

    def posterior(self, step: int, previous_step: int) -> tuple[float, float, float]:
        """Scalars of p(z_s | z_t, ẑ_0) with t = step and s = previous_step < t.

        Returns (coefficient of ẑ_0, coefficient of z_t, variance). For s = t - 1 these are Eq. 5 and
        Eq. 6; for a larger stride they are the same posterior with α_t replaced by ᾱ_t / ᾱ_s.
        """
        alpha_cumprod = float(self.alphas_cumprod[step - 1])
        previous = float(self.alphas_cumprod[previous_step - 1]) if previous_step > 0 else 1.0
        alpha = alpha_cumprod / previous
        beta = 1 - alpha
        of_predicted = math.sqrt(previous) * beta / (1 - alpha_cumprod)
        of_current = math.sqrt(alpha) * (1 - previous) / (1 - alpha_cumprod)
        variance = (1 - previous) / (1 - alpha_cumprod) * beta
        return of_predicted, of_current, variance

    def ddim(self, step: int, previous_step: int) -> tuple[float, float, float]:
        """The same scalars for the deterministic way from t to s (DDIM, Song et al. 2021, Eq. 12 with η = 0).

        z_s = √ᾱ_s·ẑ_0 + √(1 - ᾱ_s)·ε̂ with the noise ε̂ that z_t holds beside ẑ_0; no new noise is drawn.
        """
        alpha_cumprod = float(self.alphas_cumprod[step - 1])
        previous = float(self.alphas_cumprod[previous_step - 1]) if previous_step > 0 else 1.0
        of_current = math.sqrt((1 - previous) / (1 - alpha_cumprod))
        of_predicted = math.sqrt(previous) - math.sqrt(alpha_cumprod) * of_current
        return of_predicted, of_current, 0.0


SAMPLERS: dict[str, Callable[[NoiseSchedule, int, int], tuple[float, float, float]]] = {
    "ddpm": NoiseSchedule.posterior,
    "ddim": NoiseSchedule.ddim,
}
"""sampler(schedule, step, previous_step) -> (coefficient of ẑ_0, coefficient of z_t, variance)"""
