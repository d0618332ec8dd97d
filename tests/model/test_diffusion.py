from __future__ import annotations

import math

import pytest
import torch

from model.diffusion import diffuse, reverse, reverse_step, sample_steps, strided_steps
from model.drift import apply_drift, prepare_drift, slice_positions
from model.noise_schedule import NoiseSchedule


def test_drift_is_the_difference_of_adjacent_behaviours() -> None:
    """Eq. 10, 11: x = 1, 4, 9 and next 16 drift by 3, 5, 7."""
    sequence = torch.tensor([[[1.0], [4.0], [9.0]]])
    following = torch.tensor([[[4.0], [9.0], [16.0]]])
    assert prepare_drift(sequence, following).flatten().tolist() == [3.0, 5.0, 7.0]


def test_applied_drift_sliced_at_the_end_is_the_next_behaviour() -> None:
    """Eq. 18."""
    sequence = torch.tensor([[[1.0], [4.0], [9.0]]])
    drift = torch.tensor([[[3.0], [5.0], [7.0]]])
    predicted = apply_drift(drift, sequence)
    assert slice_positions(predicted, torch.tensor([[2]])).flatten().tolist() == [16.0]
    assert slice_positions(predicted, torch.tensor([[0, 1]])).flatten().tolist() == [4.0, 9.0]


def test_diffuse_mixes_drift_and_noise_by_equation_14() -> None:
    schedule = NoiseSchedule("linear", 2, beta_start=0.36, final_alpha_cumprod=0.25)  # ᾱ = 0.64, 0.25
    drift = torch.tensor([[[2.0]], [[2.0]]])
    noise = torch.tensor([[[10.0]], [[10.0]]])
    noised = diffuse(drift, torch.tensor([1, 2]), noise, schedule)
    assert noised.flatten().tolist() == pytest.approx(
        [0.8 * 2 + 0.6 * 10, 0.5 * 2 + math.sqrt(0.75) * 10], abs=1e-5
    )


def test_reverse_step_is_posterior_mean_plus_root_of_variance_times_noise() -> None:
    """Eq. 17 with ᾱ = (0.8, 0.4); see the posterior's own test for the scalars."""
    schedule = NoiseSchedule("linear", 2, beta_start=0.2, final_alpha_cumprod=0.4)
    got = reverse_step(
        torch.tensor([3.0]),
        torch.tensor([2.0]),
        torch.tensor([1.0]),
        step=2,
        previous_step=1,
        schedule=schedule,
    )
    mean = math.sqrt(0.8) * 0.5 / 0.6 * 2 + math.sqrt(0.5) * 0.2 / 0.6 * 3
    assert got.item() == pytest.approx(mean + math.sqrt(0.2 / 0.6 * 0.5), abs=1e-5)


def test_reverse_with_an_oracle_recovers_the_drift_exactly() -> None:
    truth = torch.randn(2, 5, 4)
    schedule = NoiseSchedule("exp", 50)
    visited: list[int] = []

    def oracle(noised: torch.Tensor, sequence: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        visited.append(int(step[0]))
        return truth

    got = reverse(oracle, torch.zeros(2, 5, 4), lambda step: torch.randn(2, 5, 4), schedule=schedule)
    assert torch.allclose(got, truth, atol=1e-5)
    assert visited == list(range(50, 0, -1))


def test_reverse_of_gaussian_data_gives_gaussian_data() -> None:
    """With the exact E[z_0 | z_t] of one-dimensional N(μ, σ²) data, samples have that mean and spread."""
    mean, deviation = 1.5, 0.5
    schedule = NoiseSchedule("exp", 50, final_alpha_cumprod=1e-4)

    def exact(noised: torch.Tensor, sequence: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        alpha = schedule.alphas_cumprod[int(step[0]) - 1]
        gain = alpha.sqrt() * deviation**2 / (alpha * deviation**2 + 1 - alpha)
        return mean + gain * (noised - alpha.sqrt() * mean)

    generator = torch.Generator().manual_seed(1)
    samples = reverse(
        exact,
        torch.zeros(20_000, 1, 1),
        lambda step: torch.randn(20_000, 1, 1, generator=generator),
        schedule=schedule,
    )
    assert samples.mean().item() == pytest.approx(mean, abs=0.02)
    assert samples.std().item() == pytest.approx(deviation, abs=0.03)


def test_reverse_asks_for_the_noise_of_each_step_once() -> None:
    asked: list[int] = []

    def noise(step: int) -> torch.Tensor:
        asked.append(step)
        return torch.zeros(1, 1, 1)

    reverse(lambda z, x, r: z, torch.zeros(1, 1, 1), noise, schedule=NoiseSchedule("exp", 4))
    assert asked == [4, 3, 2, 1]


def test_steps_are_drawn_from_one_to_t() -> None:
    steps = sample_steps(2_000, 5, torch.device("cpu"))
    assert steps.unique().tolist() == [1, 2, 3, 4, 5]


def test_strided_steps_go_from_t_to_one() -> None:
    assert strided_steps(50, 1) == [50]
    assert strided_steps(50, 2) == [50, 1]
    assert strided_steps(50, 5) == [50, 38, 26, 13, 1]
    assert strided_steps(4, 4) == [4, 3, 2, 1]
    with pytest.raises(ValueError, match=r"1\.\.50, got 51"):
        strided_steps(50, 51)
