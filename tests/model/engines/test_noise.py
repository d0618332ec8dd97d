"""The noise inside the engines is that of `model.noise`: the same words, the same normals to rounding."""

from __future__ import annotations

from ctypes import POINTER, c_float, c_uint32

import numpy as np
import pytest
import torch

from model.engines.torch_noise import StepNoise, philox
from model.noise import box_muller, request_noise
from model.noise import philox as reference_philox
from tests.model.engines.conftest import VARIANTS, library

KEYS = [0, 1, 2**32 - 1, 2**32, 2**63 + 12_345, 2**64 - 1]
STEPS = [50, 7, 1]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_native_words_and_normals(variant: str, step: int) -> None:
    native = library()
    if variant not in native.variants:
        pytest.skip(f"this processor or compiler has no {variant}")
    for key in KEYS:
        expected = reference_philox(np.array([key], np.uint64), step=step, num_blocks=801)[0]
        words = np.zeros(expected.shape, np.uint32)
        normals = np.zeros(expected.shape, np.float32)
        call = (variant.encode(), key, step, words.size)
        assert native.functions.t2_words(*call, words.ctypes.data_as(POINTER(c_uint32)))
        assert native.functions.t2_normals(*call, normals.ctypes.data_as(POINTER(c_float)))
        assert np.array_equal(words, expected)
        assert np.abs(normals - box_muller(expected)).max() < 4e-6


def test_torch_words() -> None:
    key = np.array(KEYS, np.uint64)
    step = torch.tensor([50, 7, 1, 50, 2, 3])
    words = philox(torch.from_numpy(key.view(np.int64)), step, torch.empty(6, 6, 33, dtype=torch.int64))
    for row in range(6):
        expected = reference_philox(key[row : row + 1], step=int(step[row]), num_blocks=33)
        assert np.array_equal(torch.stack(words, dim=-1)[row : row + 1].numpy(), expected)


@pytest.mark.parametrize(("num_keys", "length"), [(1, 3), (3, 50), (50, 50)])
def test_torch_normals_of_several_steps(num_keys: int, length: int) -> None:
    """Few keys draw many steps at once, many keys a part of one."""
    keys = [2**63 + 5 * number for number in range(num_keys)]
    steps = list(range(12, 0, -1))
    draw = StepNoise(keys, steps, length, 64, torch.device("cpu"))
    expected = request_noise(keys, length, 64)
    for step in steps:
        assert torch.allclose(draw(step), expected(step), atol=4e-6)
