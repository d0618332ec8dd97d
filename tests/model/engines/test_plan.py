"""DDIM's coefficients and the plan of the visited steps."""

from __future__ import annotations

import pytest
import torch

from model.diffusion import diffuse, reverse_step
from model.engines.plan import reverse_plan
from model.noise_schedule import NoiseSchedule
from tests.model.engines.conftest import SMALL, tower_model


@pytest.mark.parametrize(("step", "previous_step"), [(50, 49), (50, 25), (7, 1), (3, 0)])
def test_ddim_keeps_the_noise_that_the_prediction_leaves(step: int, previous_step: int) -> None:
    """Where ẑ_0 is right, DDIM leads from z_t to the z_s of the same noise."""
    schedule = NoiseSchedule("exp", 50)
    drift, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)

    def noised(at: int) -> torch.Tensor:
        return diffuse(drift, torch.full((2,), at), noise, schedule) if at else drift

    found = reverse_step(
        noised(step), drift, None, step=step, previous_step=previous_step, schedule=schedule, sampler="ddim"
    )
    assert torch.allclose(found, noised(previous_step), atol=1e-6)


def test_ddim_draws_noise_once() -> None:
    model = tower_model(**SMALL, sampler="ddim")
    asked: list[int] = []

    def noise(step: int) -> torch.Tensor:
        asked.append(step)
        return torch.zeros(1, 4, 16)

    mask = torch.ones(1, 4, dtype=torch.bool)
    model.generate_next(torch.zeros(1, 4, 16), mask, steps=[6, 5, 4, 3, 2, 1], noise=noise)
    assert asked == [6]


def test_the_plan_of_one_step_by_hand() -> None:
    """α and β of the last visited step give the posterior of Eq. 5 and 6."""
    model = tower_model(**SMALL)
    plan = reverse_plan(model)
    assert plan.steps == [6, 5, 4, 3, 2, 1]
    assert plan.previous_steps == [5, 4, 3, 2, 1, 0]
    betas = model.schedule.betas.double()
    alphas = torch.cumprod(1 - betas, dim=0)
    beta, now, before = betas[5], alphas[5], alphas[4]
    assert plan.of_predicted[0] == pytest.approx(0.1 * float(before.sqrt() * beta / (1 - now)), rel=1e-5)
    assert plan.of_current[0] == pytest.approx(float((1 - beta).sqrt() * (1 - before) / (1 - now)), rel=1e-5)
    assert plan.sigma[0] == pytest.approx(float(((1 - before) / (1 - now) * beta).sqrt()), rel=1e-5)
    assert (plan.of_predicted[-1], plan.of_current[-1], plan.sigma[-1]) == pytest.approx(
        (0.1, 0, 0), abs=1e-6
    )
