"""The noise that graphs draw is that of model/noise.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.engines.gpu.graph_noise import GraphNoise, draw_by_torch, noise_steps
from model.engines.plan import reverse_plan
from model.noise import request_noise
from tests.model.engines.conftest import SMALL, tower_model
from tests.model.engines.gpu.conftest import run_noise

KEYS = [0, 7, 2**63 + 5, 2**64 - 1]


def _expected(steps: list[int], length: int, dim: int) -> torch.Tensor:
    noise = request_noise(KEYS, length, dim)
    return torch.stack([noise(step) for step in steps])


def _device_keys() -> torch.Tensor:
    return torch.tensor([key - 2**64 if key >= 2**63 else key for key in KEYS])


def test_torch_draws_the_same_noise() -> None:
    steps = [50, 3, 1]
    normals = torch.empty(3, 4, 5, 12)
    draw_by_torch(_device_keys(), torch.tensor(steps, dtype=torch.int32), normals)
    assert torch.allclose(normals, _expected(steps, 5, 12), atol=2e-6)


def test_the_kernel_draws_the_same_noise(emulate: Any) -> None:
    steps = [50, 3, 1]
    assert torch.allclose(run_noise(emulate, KEYS, steps, 50, 12), _expected(steps, 50, 12), atol=2e-6)


@pytest.mark.parametrize("buffer_bytes", [1, 2_000, 1 << 20])
def test_steps_are_drawn_in_order_whatever_fits_the_buffer(
    monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr("model.engines.gpu.graph_noise._BUFFER_BYTES", buffer_bytes)
    plan = reverse_plan(tower_model(**SMALL))
    drawings = []

    def drawing(keys: torch.Tensor, steps: torch.Tensor, out: torch.Tensor) -> None:
        drawings.append(steps.tolist())
        draw_by_torch(keys, steps, out)

    noise = GraphNoise(_device_keys(), plan, 5, 16, drawing)
    for _ in range(2):  # each run draws everything itself
        drawings.clear()
        noise.begin()
        for step in (6, 5, 4, 3, 2, 1):
            assert torch.allclose(noise(step), _expected([step], 5, 16)[0], atol=2e-6)
        assert [step for drawn in drawings for step in drawn] == [6, 5, 4, 3, 2, 1], (
            "each run draws everything itself"
        )
    assert len(drawings) == {1: 6, 2_000: 6, 1 << 20: 1}[buffer_bytes]


def test_only_what_is_added_is_drawn() -> None:
    assert noise_steps(reverse_plan(tower_model(**SMALL))) == [6, 5, 4, 3, 2, 1]
    strided = tower_model(**SMALL, num_inference_steps=3)
    assert noise_steps(reverse_plan(strided)) == [6, 4, 1]
    assert noise_steps(reverse_plan(tower_model(**SMALL, sampler="ddim"))) == [6]
    assert noise_steps(reverse_plan(tower_model(**SMALL, predicted_next="regressed"))) == []
