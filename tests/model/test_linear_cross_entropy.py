from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from model import linear_cross_entropy as module
from model.linear_cross_entropy import linear_cross_entropy


def _plain(user: torch.Tensor, items: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    routes = user if user.ndim == 3 else user[:, None]
    return F.cross_entropy((routes @ items.T).amax(dim=1), target)


@pytest.mark.parametrize(("num_items", "tolerance"), [(50, 1e-6), (3_000, 4e-3)])
@pytest.mark.parametrize("shape", [(700, 16), (700, 1, 16), (700, 3, 16)], ids=str)
def test_loss_and_gradients_are_those_of_the_plain_form(
    shape: tuple[int, ...], num_items: int, tolerance: float
) -> None:
    """Over several pieces; the larger catalogue in bfloat16 where the processor has it."""
    torch.manual_seed(0)
    user = torch.randn(shape, requires_grad=True)
    items = (0.5 * torch.randn(num_items, 16)).requires_grad_()
    target = torch.randint(0, num_items, shape[:1])
    expected, ours = _plain(user, items, target), linear_cross_entropy(user, items, target)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-3 if num_items > 1_000 else 1e-6)
    for wanted, got in zip(
        torch.autograd.grad(3 * expected, (user, items)),
        torch.autograd.grad(3 * ours, (user, items)),
        strict=True,
    ):
        assert float((wanted - got).norm() / wanted.norm()) < tolerance


def test_by_hand() -> None:
    """Scores 1, 0 for a user (1, 0) and items (1, 0), (0, 1): the loss of item 1 is log(1 + e)."""
    loss = linear_cross_entropy(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([1]))
    assert loss.item() == pytest.approx(math.log(1 + math.e))


def test_a_piece_may_be_shorter_than_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_ROWS", 4)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1)
    user, items = torch.randn(10, 2, 8), torch.randn(7, 8)
    target = torch.randint(0, 7, (10,))
    assert linear_cross_entropy(user, items, target).item() == pytest.approx(
        _plain(user, items, target).item(), rel=1e-5
    )


def test_a_hopeless_target_has_a_large_finite_loss() -> None:
    user, items = torch.tensor([[1e3]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = linear_cross_entropy(user, items, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss, user)
    assert 80 < loss.item() < math.inf
    assert gradient.item() == pytest.approx(2.0)
