from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from model.baselines.dat import DAT, DATConfig, mimic_loss
from model.batch import collate
from model.registry import build_model
from tests.model.baselines.contract_checks import (
    NUM_ITEMS,
    check_contract,
    check_dense_equals_serving,
    check_overfits_one_batch,
    check_padding_never_changes_an_embedding,
    make_sequences,
    shake,
    with_following_targets,
)

VARIANTS: list[dict[str, Any]] = [
    {},
    {"pooling": "mean"},
    {"loss": "binary"},
    {"max_full_softmax_items": 5, "num_negatives": 64},
]


def _model(**settings: Any) -> DAT:
    torch.manual_seed(0)
    tiny = {"embedding_dim": 8, "max_length": 6, "feed_forward_hidden": 32, "dropout": 0.0}
    model = build_model("dat", {**tiny, **settings}, NUM_ITEMS)
    assert isinstance(model, DAT)
    return model


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_contract(settings: dict[str, Any]) -> None:
    check_contract(_model(**settings))


@pytest.mark.parametrize("settings", VARIANTS[:2], ids=str)
def test_padding_never_changes_an_embedding(settings: dict[str, Any]) -> None:
    check_padding_never_changes_an_embedding(_model(**settings))


@pytest.mark.parametrize("settings", VARIANTS[:2], ids=str)
def test_dense_training_computes_what_serving_the_cut_sequence_would(settings: dict[str, Any]) -> None:
    model = shake(_model(**settings)).eval()
    assert isinstance(model, DAT)
    (whole,) = make_sequences([6])
    check_dense_equals_serving(model, model.states(collate([whole], max_length=6))[0], whole)


@pytest.mark.parametrize("settings", VARIANTS[:3], ids=str)
def test_overfits_one_batch(settings: dict[str, Any]) -> None:
    check_overfits_one_batch(_model(**settings), updates=400)


def test_both_towers_end_at_length_one() -> None:
    model = shake(_model()).eval()
    user = model.user_embedding(collate(make_sequences([5, 2]), max_length=6))
    assert torch.allclose(user.norm(dim=1), torch.ones(2))
    assert torch.allclose(model.item_embeddings().norm(dim=1), torch.ones(NUM_ITEMS))


def test_pooling_by_hand() -> None:
    sequence = torch.tensor([[[1.0], [10.0], [100.0]]])
    assert _model(pooling="mean").pool(sequence).flatten().tolist() == pytest.approx([1, 5.5, 37])
    model = _model()
    with torch.no_grad():
        model.recency[:3] = torch.tensor([math.log(2), 0.0, math.log(3)])  # 0, 1, 2 behaviours back
    assert model.pool(sequence).flatten().tolist() == pytest.approx(
        [1, (2 * 10 + 1) / 3, (2 * 100 + 10 + 3 * 1) / 6]
    )


def test_mimic_loss_by_hand_moves_the_augmented_vector_only() -> None:
    augmented = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    output = torch.tensor([[0.0, 4.0], [3.0, 4.0]], requires_grad=True)
    loss = mimic_loss(augmented, output)
    assert loss.item() == pytest.approx((1 + 4 + 9 + 16) / 2)
    loss.backward()
    assert augmented.grad is not None
    assert augmented.grad.tolist() == [[1.0, -2.0], [-3.0, -4.0]]
    assert output.grad is None


def test_what_the_mimic_losses_teach() -> None:
    """Weights λ add gradient to the two augmented vectors' own parameters and to nothing else."""
    batch = with_following_targets(collate(make_sequences([6, 3]), max_length=6), last=[1, 2])

    def gradients(**weights: float) -> dict[str, torch.Tensor]:
        model = _model(**weights)
        model.training_loss(batch).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    without = gradients(mimic_user_weight=0.0, mimic_item_weight=0.0)
    of_user = gradients(mimic_user_weight=3.0, mimic_item_weight=0.0)
    of_item = gradients(mimic_user_weight=0.0, mimic_item_weight=3.0)
    for changed, own in ((of_user, "augment_user"), (of_item, "augmented_item")):
        for name in without:
            same = torch.allclose(changed[name], without[name], atol=1e-7)
            assert same is not name.startswith(own), name


def test_the_loss_is_the_sum_of_its_three_parts() -> None:
    model = shake(_model(temperature=0.5, mimic_user_weight=2.0, mimic_item_weight=3.0)).eval()
    batch = with_following_targets(collate(make_sequences([6, 3]), max_length=6), last=[1, 2])
    assert batch.target is not None
    main = of_user = of_item = 0.0
    user, augmented = model.user_and_augmented(batch)
    items = model.item_embeddings()
    for row, column in (batch.target != 0).nonzero().tolist():
        target = int(batch.target[row, column])
        main += torch.log_softmax(items @ user[row, column] / 0.5, dim=0)[target - 1].neg().item() / 9
        of_user += (augmented[row, column] - items[target - 1]).square().sum().item() / 9
        of_item += (model.augmented_item.weight[target] - user[row, column]).square().sum().item() / 9
    assert model.training_loss(batch).item() == pytest.approx(main + 2 * of_user + 3 * of_item, rel=1e-4)


def test_training_lets_the_augmented_vectors_find_the_other_side() -> None:
    model = _model(temperature=0.2)
    batch = with_following_targets(collate(make_sequences([6, 6, 5, 4]), max_length=6), last=[3, 9, 12, 25])
    assert batch.target is not None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
    supervised = batch.target != 0
    user, augmented = model.user_and_augmented(batch)
    item = model.item_vectors(batch.target[supervised])
    random_distance = (item - item.roll(1, dims=0)).square().sum(dim=-1).mean().item()
    assert mimic_loss(augmented[supervised], item).item() < 0.3 * random_distance
    assert mimic_loss(model.augmented_item(batch.target[supervised]), user[supervised]).item() < 0.5


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="pooling must be one of recency, mean, got 'max'"):
        DATConfig(pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        DATConfig(temperature=0)
    with pytest.raises(ValueError, match="mimic_user_weight must be at least 0, got -1"):
        DATConfig(mimic_user_weight=-1)
