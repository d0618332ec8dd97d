from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from model.baselines.dat import DAT, DATConfig, mimic_loss
from model.batch import collate
from tests.model.baselines.tiny_models import (
    NUM_ITEMS,
    learn,
    make_sequences,
    shake,
    tiny_model,
    with_following_targets,
)

_model = partial(tiny_model, DAT)


def test_both_towers_end_at_length_one() -> None:
    model = shake(_model()).eval()
    user = model.user_embedding(collate(make_sequences([5, 2]), max_length=6))
    assert torch.allclose(user.norm(dim=1), torch.ones(2))
    assert torch.allclose(model.item_embeddings().norm(dim=1), torch.ones(NUM_ITEMS))


def test_the_towers_by_hand() -> None:
    """D = 2, one hidden unit: p_u = normalize(W₂·ReLU(W₁·[e_u, a_u])), and so for p_v with a_v.

    LayerNorm makes the two items (1, -1) and (-1, 1).
    """
    model = _model(embedding_dim=2, feed_forward_hidden=1, pooling="mean").eval()
    with torch.no_grad():
        model.items.item_table.weight[1:3] = torch.tensor([[3.0, 1.0], [-5.0, 2.0]])
        model.augmented_item.weight[2] = torch.tensor([0.5, 7.0])
        for network in (model.augment_user, model.user_tower, model.item_tower):
            network[0].bias.zero_()
            network[3].bias.zero_()
        model.augment_user[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        model.augment_user[3].weight.copy_(torch.tensor([[10.0], [-20.0]]))
        for tower in (model.user_tower, model.item_tower):
            tower[0].weight.copy_(torch.tensor([[1.0, 2.0, 0.3, 0.01]]))
            tower[3].weight.copy_(torch.tensor([[3.0], [4.0]]))
            tower[3].bias.copy_(torch.tensor([0.0, 1.0]))
    batch = collate(make_sequences([1]), max_length=6)
    of_user = {
        1: 1 - 2 * 1 + 0.3 * 10 + 0.01 * -20,  # a_u is 10 and -20 times ReLU(1)
        2: -1.0 + 2 * 1,  # and here of ReLU(-1)
    }
    for item, hidden in of_user.items():
        batch.item_index[0, 0] = item
        expected = torch.tensor([3 * hidden, 4 * hidden + 1])
        assert torch.allclose(model.user_embedding(batch)[0], expected / expected.norm(), atol=1e-4)
    hidden = -1 + 2 * 1 + 0.3 * 0.5 + 0.01 * 7
    expected = torch.tensor([3 * hidden, 4 * hidden + 1])
    assert torch.allclose(model.item_embeddings()[1], expected / expected.norm(), atol=1e-4)


def test_two_hidden_layers_make_towers_of_three() -> None:
    model = _model(num_layers=2)
    for network, inputs in ((model.augment_user, 8), (model.user_tower, 16), (model.item_tower, 16)):
        shapes = [tuple(layer.weight.shape) for layer in network if isinstance(layer, torch.nn.Linear)]
        assert shapes == [(32, inputs), (32, 32), (8, 32)]


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
    learn(model, batch, updates=300)
    supervised = batch.target != 0
    user, augmented = model.user_and_augmented(batch)
    item = model.item_vectors(batch.target[supervised])
    random_distance = (item - item.roll(1, dims=0)).square().sum(dim=-1).mean().item()
    assert mimic_loss(augmented[supervised], item).item() < 0.3 * random_distance
    assert mimic_loss(model.augmented_item(batch.target[supervised]), user[supervised]).item() < 0.5


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="pooling must be one of recency, mean, got 'max'"):
        DATConfig(pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        DATConfig(num_layers=0)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        DATConfig(temperature=0)
    with pytest.raises(ValueError, match="mimic_user_weight must be at least 0, got -1"):
        DATConfig(mimic_user_weight=-1)
