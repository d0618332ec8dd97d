from __future__ import annotations

import math

import pytest
import torch

from model import losses
from model.losses import kl_loss, sample_negatives, sampled_tower_loss, tower_loss


def test_kl_loss_is_the_mean_square_over_real_positions() -> None:
    """Eq. 23: errors 1 and 3 at the real positions, 100 at padding."""
    predicted = torch.tensor([[[1.0], [3.0], [100.0]]])
    mask = torch.tensor([[True, True, False]])
    assert kl_loss(predicted, torch.zeros(1, 3, 1), mask).item() == pytest.approx((1 + 9) / 2)


def test_tower_loss_by_hand() -> None:
    """Eq. 24: scores ln 1, ln 2, ln 5, target the last: -ln(5 / 8)."""
    items = torch.tensor([[math.log(1)], [math.log(2)], [math.log(5)]])
    loss = tower_loss(torch.ones(1, 1), items, torch.tensor([2]))
    assert loss.item() == pytest.approx(-math.log(5 / 8))


def test_sampled_loss_with_every_item_once_is_the_full_loss() -> None:
    user, items, target = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([0, 5, 2])
    sampled = sampled_tower_loss(user, items, target, torch.arange(6), torch.zeros(6))
    assert sampled.item() == pytest.approx(tower_loss(user, items, target).item(), abs=1e-6)


def test_log_q_correction_makes_the_denominator_unbiased_under_a_skewed_sampler() -> None:
    torch.manual_seed(3)
    user, items = torch.ones(1, 1), torch.linspace(-2, 2, 30)[:, None]  # popular items score high
    target = torch.tensor([7])
    probability = torch.arange(1, 31).double()
    probability /= probability.sum()
    full = tower_loss(user, items, target).item()
    negative, log_expected = sample_negatives(probability.float(), 200_000)
    corrected = sampled_tower_loss(user, items, target, negative, log_expected).item()
    uncorrected = sampled_tower_loss(
        user, items, target, negative, torch.full_like(log_expected, math.log(200_000 / 30))
    ).item()
    assert corrected == pytest.approx(full, abs=0.02)
    assert abs(uncorrected - full) > 0.1


def test_more_items_than_torch_can_draw_from_are_drawn_as_often_as_their_probability_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "MOST_CATEGORIES", 3)
    probability = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0])
    negative, log_expected_count = sample_negatives(probability, 20_000)
    share = torch.bincount(negative, minlength=5) / 20_000
    assert torch.allclose(share, probability, atol=0.02)
    assert share[1] == share[4] == 0
    assert torch.allclose(log_expected_count, (20_000 * probability[negative]).log())
