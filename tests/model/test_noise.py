from __future__ import annotations

import numpy as np
import pytest
import torch

from model.noise import box_muller, philox, request_key, request_noise, route_keys


def test_philox_agrees_with_the_published_known_answer() -> None:
    """Philox4x32-10 of counter 0 and key 0 (Random123's known answers)."""
    words = philox(np.zeros(1, dtype=np.uint64), step=0, num_blocks=1)
    assert [f"{word:08x}" for word in words[0, 0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_noise_of_a_request_depends_on_neither_batch_nor_padding() -> None:
    alone = request_noise([11], 5, 8)(3)
    together = request_noise([7, 11, 9], 12, 8)(3)
    assert torch.equal(alone[0], together[1, :5])


def test_noise_differs_between_requests_steps_and_positions() -> None:
    noise = request_noise([1, 2], 4, 8)
    assert not torch.equal(noise(1)[0], noise(1)[1])
    assert not torch.equal(noise(1), noise(2))
    assert noise(1)[0].unique().numel() == 32


def test_noise_is_standard_normal() -> None:
    values = request_noise(list(range(50)), 50, 64)(9).numpy()
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(1.0, abs=0.01)
    assert (values**4).mean() == pytest.approx(3.0, abs=0.1)
    assert abs(np.corrcoef(values[:, :, 0].ravel(), values[:, :, 1].ravel())[0, 1]) < 0.05


def test_extreme_words_give_finite_normals() -> None:
    words = np.array([[0, 0, 0xFFFFFFFF, 0xFFFFFFFF]], dtype=np.uint32)
    assert np.isfinite(box_muller(words)).all()


def test_keys_follow_seed_and_user() -> None:
    assert request_key(0, "u1") == request_key(0, "u1")
    assert len({request_key(0, "u1"), request_key(1, "u1"), request_key(0, "u2"), request_key(0, "1u")}) == 4


def test_dimension_must_fit_philox_blocks() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        request_noise([1], 5, 6)


def test_route_keys_begin_with_the_requests_own_and_are_distinct() -> None:
    keys = [0, 1, 2**64 - 1]
    routes = route_keys(keys, 4)
    assert routes[::4] == keys
    assert len(set(routes)) == 12
    assert all(0 <= key < 2**64 for key in routes)
    assert route_keys(keys, 1) == keys
