from __future__ import annotations

import math

import pytest
import torch

from model.noise_schedule import (
    BETA_SHAPES,
    NoiseSchedule,
    exponential_betas,
    exponential_constants,
    linear_betas,
    logarithmic_betas,
)


def test_exponential_schedule_follows_equation_13() -> None:
    a, b = exponential_constants(4, 0.1, 0.8)
    assert b == pytest.approx(math.log(2))  # three doublings from 0.1 to 0.8
    assert a == pytest.approx(0.05)
    assert exponential_betas(4, 0.1, 0.8).tolist() == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_linear_and_logarithmic_schedules_have_their_shapes() -> None:
    assert linear_betas(3, 0.1, 0.5).tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert logarithmic_betas(4, 0.1, 0.5).tolist() == pytest.approx(
        [0.1, 0.3, 0.1 + 0.4 * math.log(3) / math.log(4), 0.5]
    )


@pytest.mark.parametrize("name", BETA_SHAPES)
@pytest.mark.parametrize("num_steps", [4, 10, 50, 200])
def test_every_schedule_ends_in_noise(name: str, num_steps: int) -> None:
    schedule = NoiseSchedule(name, num_steps, final_alpha_cumprod=0.001)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(0.001, rel=1e-3)
    assert bool((schedule.betas > 0).all())
    assert bool((schedule.betas < 1).all())


def test_posterior_matches_equations_5_and_6_by_hand() -> None:
    schedule = NoiseSchedule("linear", 2, beta_start=0.2, final_alpha_cumprod=0.4)
    # ᾱ = (0.8, 0.4), so β_2 = 1 - 0.4 / 0.8 = 0.5
    assert schedule.betas.tolist() == pytest.approx([0.2, 0.5], abs=1e-6)
    of_predicted, of_current, variance = schedule.posterior(2, 1)
    assert of_predicted == pytest.approx(math.sqrt(0.8) * 0.5 / 0.6, abs=1e-6)
    assert of_current == pytest.approx(math.sqrt(0.5) * 0.2 / 0.6, abs=1e-6)
    assert variance == pytest.approx(0.2 / 0.6 * 0.5, abs=1e-6)


def test_last_posterior_is_the_prediction_itself() -> None:
    for step in (1, 7, 50):
        assert NoiseSchedule("exp", 50).posterior(step, 0) == pytest.approx((1.0, 0.0, 0.0), abs=1e-6)


def test_strided_posterior_is_the_composition_of_single_ones() -> None:
    """z_1 given z_3 and ẑ_0 has the mean and variance of going through z_2."""
    schedule = NoiseSchedule("exp", 3, final_alpha_cumprod=0.1)
    predicted_32, current_32, variance_32 = schedule.posterior(3, 2)
    predicted_21, current_21, variance_21 = schedule.posterior(2, 1)
    composed = (
        predicted_21 + current_21 * predicted_32,
        current_21 * current_32,
        variance_21 + current_21**2 * variance_32,
    )
    assert schedule.posterior(3, 1) == pytest.approx(composed, abs=1e-6)


def test_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"exp, linear, log.*'cosine'"):
        NoiseSchedule("cosine", 10)


def test_buffers_are_float32() -> None:
    assert NoiseSchedule("exp", 5).betas.dtype == torch.float32
