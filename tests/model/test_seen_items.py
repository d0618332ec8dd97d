from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model import linear_cross_entropy as module
from model.batch import Sequence, SequenceBatch, collate
from model.linear_cross_entropy import linear_cross_entropy, plain_cross_entropy
from model.losses import sampled_tower_loss, tower_loss
from model.registry import build_model
from model.seen_items import pairs_among, seen_pairs
from model.two_tower import TwoTower
from tests.model.conftest import TINY


def test_pairs_by_hand() -> None:
    """Two windows; of the first its second and third position are asked, of the second its first."""
    item_index = torch.tensor([[5, 2, 5], [7, 0, 0]])
    row, item = seen_pairs(item_index, torch.tensor([[False, True, True], [True, False, False]]))
    assert row.tolist() == [0, 0, 1, 1, 1, 2]
    assert item.tolist() == [4, 1, 4, 1, 4, 6]


def test_pairs_among_some_items_are_named_by_their_place() -> None:
    seen = (torch.tensor([0, 0, 1, 2]), torch.tensor([3, 8, 9, 4]))
    row, place = pairs_among(seen, torch.tensor([3, 4, 8]))
    assert (row.tolist(), place.tolist()) == ([0, 0, 2], [0, 2, 1])


def _case(num_users: int, num_items: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Targets, and three things that each user has seen, the target one of them for some."""
    target = torch.randint(0, num_items, (num_users,))
    item = torch.randint(0, num_items, (num_users, 3))
    item[::4, 1] = target[::4]
    item[::3, 2] = item[::3, 0]  # seen twice
    return target, (torch.arange(num_users).repeat_interleave(3), item.flatten())


def _by_loop(
    scores: torch.Tensor, target: torch.Tensor, seen: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    allowed = torch.ones_like(scores, dtype=torch.bool)
    for row, item in zip(*(part.tolist() for part in seen), strict=True):
        allowed[row, item] = item == int(target[row])
    return F.cross_entropy(scores.masked_fill(~allowed, float("-inf")), target)


@pytest.mark.parametrize(("num_items", "tolerance"), [(50, 1e-6), (3_000, 4e-3)])
@pytest.mark.parametrize("num_routes", [1, 3])
def test_loss_and_gradients_are_those_of_the_plain_form(
    num_routes: int, num_items: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 1)  # in pieces of 64 users
    torch.manual_seed(0)
    user = torch.randn(150, num_routes, 16, requires_grad=True)
    items = (0.5 * torch.randn(num_items, 16)).requires_grad_()
    target, seen = _case(150, num_items)
    expected = _by_loop((user @ items.T).amax(dim=1), target, seen)
    ours = linear_cross_entropy(user, items, target, seen)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-3 if num_items > 1_000 else 1e-6)
    for wanted, got in zip(
        torch.autograd.grad(expected, (user, items)),
        torch.autograd.grad(ours, (user, items)),
        strict=True,
    ):
        assert float((wanted - got).norm() / wanted.norm()) < tolerance


def test_the_form_for_other_devices_is_the_same() -> None:
    torch.manual_seed(0)
    user, items = torch.randn(20, 2, 4), torch.randn(9, 4)
    target, seen = _case(20, 9)
    loss = plain_cross_entropy(user, items, target, seen)
    expected = _by_loop((user @ items.T).amax(dim=1), target, seen)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sampled_loss_with_every_item_once_is_the_full_loss() -> None:
    torch.manual_seed(0)
    user, items = torch.randn(20, 4), torch.randn(9, 4)
    target, seen = _case(20, 9)
    sampled = sampled_tower_loss(user, items, target, torch.arange(9), torch.zeros(9), seen)
    assert sampled.item() == pytest.approx(tower_loss(user, items, target, seen).item(), abs=1e-6)
    assert abs(sampled.item() - tower_loss(user, items, target).item()) > 1e-3


T2DIFF: dict[str, Any] = {"drift_scale": 1.0}
SASREC = {
    "embedding_dim": 8,
    "max_length": 6,
    "dropout": 0.0,
    "feed_forward_hidden": 16,
    "normalize_inputs": True,
}
SAMPLED = {"max_full_softmax_items": 5, "num_negatives": 400}


@pytest.mark.parametrize("sampled", [{}, SAMPLED], ids=["full", "sampled"])
@pytest.mark.parametrize("model_name", ["t2diff", "t2diff_with_intent_loss", "sasrec"])
def test_a_seen_item_counts_for_nothing_unless_it_is_the_target(
    model_name: str, sampled: dict[str, int]
) -> None:
    """The towers read normed embeddings, so a longer row of the table changes that item's score alone."""

    def loss(*, exclude: bool, target: int, longer: int | None = None) -> float:
        settings = SASREC if model_name == "sasrec" else {**TINY, **T2DIFF}
        if model_name.endswith("intent_loss"):
            settings = {**settings, "intent_loss_weight": 0.5}
        torch.manual_seed(0)
        model: TwoTower = build_model(
            model_name.split("_")[0], {**settings, **sampled, "exclude_seen": exclude}, 12
        )
        with torch.no_grad():
            table = next(p for name, p in model.named_parameters() if "item_table" in name)
            torch.nn.init.normal_(table[1:])
            if longer is not None:
                table[longer] *= 50
        torch.manual_seed(1)
        return float(model.eval().training_loss(_asked_at_the_end([4, 9, 2, 9], target)).detach())

    assert loss(exclude=True, target=7) == pytest.approx(
        loss(exclude=True, target=7, longer=9),
        abs=1e-4,  # of LayerNorm
    )
    assert abs(loss(exclude=False, target=7) - loss(exclude=False, target=7, longer=9)) > 1e-3
    assert abs(loss(exclude=True, target=9) - loss(exclude=True, target=9, longer=9)) > 1e-3
    unseen = [loss(exclude=True, target=7, longer=item) for item in (1, 3, 5, 6, 8)]
    assert max(unseen) > loss(exclude=True, target=7) + 1e-3


def _asked_at_the_end(items: list[int], target: int) -> SequenceBatch:
    """A window whose last position alone is supervised."""
    sequence = Sequence(np.array(items), 1_000 + 60 * np.arange(len(items)), 1_300)
    batch = collate([sequence], max_length=6)
    following = torch.zeros_like(batch.item_index)
    following[0, len(items) - 1] = target
    return replace(batch, target=following)
