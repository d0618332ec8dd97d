from __future__ import annotations

import pytest
import torch

from model.dropout import Dropout, keep_mask


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_keeps_the_asked_share_and_the_mean(share: float) -> None:
    torch.manual_seed(0)
    values = torch.ones(400, 1_001)
    dropped = Dropout(share)(values)
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=3e-3)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=2e-2)


def test_neighbours_are_dropped_independently() -> None:
    """Four decisions come from one draw; each pair of them must agree as often as chance says."""
    torch.manual_seed(0)
    kept = keep_mask(torch.Size((100_000, 4)), 0.5).float()
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert float(correlation.abs().max()) < 0.015


def test_evaluation_changes_nothing() -> None:
    values = torch.randn(5, 7)
    assert Dropout(0.5).eval()(values) is values


def test_gradient_passes_where_the_value_did() -> None:
    values = torch.ones(1_000, requires_grad=True)
    dropped = Dropout(0.25)(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


def test_a_restored_generator_repeats_the_mask() -> None:
    state = torch.get_rng_state()
    first = keep_mask(torch.Size((33,)), 0.3)
    torch.set_rng_state(state)
    assert torch.equal(first, keep_mask(torch.Size((33,)), 0.3))
