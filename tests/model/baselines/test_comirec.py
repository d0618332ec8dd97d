from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from model.baselines.comirec import ComiRec, ComiRecConfig, select_interest
from model.batch import collate
from tests.model.baselines.tiny_models import NUM_ITEMS, learn, make_sequences, shake, tiny_model

_model = partial(tiny_model, ComiRec)


def test_interests_by_hand() -> None:
    """Two items of dimension 1, two heads: A = softmax(W₂ tanh(W₁ x)), V = A x, read up to each position."""
    model = ComiRec(
        ComiRecConfig(
            embedding_dim=1,
            max_length=2,
            num_interests=2,
            attention_hidden=1,
            dropout=0.0,
            normalize_inputs=False,
        ),
        2,
    ).eval()
    with torch.no_grad():
        model.items.item_table.weight[1:] = torch.tensor([[0.5], [2.0]])
        model.position_table.weight.copy_(torch.tensor([[0.1], [-0.2]]))
        model.of_score[0].weight.fill_(1.5)
        model.of_score[2].weight.copy_(torch.tensor([[3.0], [-1.0]]))
        model.distance_bias.weight.copy_(torch.tensor([[0.4, 0.0], [0.0, 0.7]]))
    (sequence,) = make_sequences([2])
    batch = collate([sequence._replace(item_index=torch.tensor([1, 2]).numpy())], max_length=2)
    first, second = math.tanh(1.5 * (0.5 + 0.1)), math.tanh(1.5 * (2.0 - 0.2))
    expected = []
    for of_head, here, one_back in ((3.0, 0.4, 0.0), (-1.0, 0.0, 0.7)):
        a, b = math.exp(of_head * first + one_back), math.exp(of_head * second + here)
        expected.append((a * 0.5 + b * 2.0) / (a + b))
    assert model.interests(batch)[0, 0].flatten().tolist() == pytest.approx([0.5, 0.5])
    assert model.user_embeddings(batch).flatten().tolist() == pytest.approx(expected)


def test_the_one_embedding_is_the_longest_interest() -> None:
    model = shake(_model()).eval()
    batch = collate(make_sequences([6, 3, 1]), max_length=6)
    every = model.user_embeddings(batch)
    assert every.shape == (3, 4, 8)
    longest = every.norm(dim=-1).argmax(dim=1)
    assert torch.equal(model.user_embedding(batch), every[torch.arange(3), longest])


@pytest.mark.parametrize("max_full_softmax_items", [100, 5])
def test_label_aware_a_target_trains_the_interest_that_scores_it_best_and_no_other(
    max_full_softmax_items: int,
) -> None:
    model = shake(_model(loss="label_aware", max_full_softmax_items=max_full_softmax_items)).train()
    batch = collate(make_sequences([6]), max_length=6)
    target = torch.zeros_like(batch.item_index).index_fill(1, torch.tensor([5]), 7)
    kept = model.interests(batch)
    best = int((kept[0, 5] @ model.item_embeddings()[6]).argmax())
    leaf = kept.detach().requires_grad_()
    model.interests = lambda _: leaf  # type: ignore[method-assign]
    model.training_loss(replace(batch, target=target)).backward()
    assert leaf.grad is not None
    touched = leaf.grad.abs().sum(dim=-1)[0].nonzero().tolist()
    assert touched == [[5, best]]


def test_best_interest_loss_by_hand() -> None:
    """Two interests (1, 0) and (0, 1); items (2, 1), (0, 3), (-1, -4) score 2, 3, -1 by their best one."""
    model = ComiRec(ComiRecConfig(embedding_dim=2, num_interests=2), 3)
    items = torch.tensor([[2.0, 1.0], [0.0, 3.0], [-1.0, -4.0]])
    model.items.item_table.weight.data[1:] = items
    loss = model.items.loss(torch.eye(2)[None], torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + math.exp(3) + math.exp(-1))))


def test_sampled_best_interest_loss_estimates_the_full_one() -> None:
    model = shake(_model(max_full_softmax_items=5, num_negatives=200_000))
    full = shake(_model())
    full.load_state_dict(model.state_dict())
    model.observe_item_counts(torch.arange(NUM_ITEMS))
    interests, target = torch.randn(5, 4, 8), torch.tensor([1, 30, 7, 7, 12])
    sampled = model.items.loss(interests, target).item()
    assert sampled == pytest.approx(full.items.loss(interests, target).item(), rel=0.02)


def test_select_interest_takes_the_row_of_the_largest_score() -> None:
    interests = torch.arange(12.0).view(2, 3, 2)
    chosen = select_interest(interests, torch.tensor([[0.0, 5.0, 1.0], [2.0, -1.0, 1.0]]))
    assert chosen.tolist() == [[2.0, 3.0], [6.0, 7.0]]


def test_with_several_interests_some_list_begins_with_the_target() -> None:
    model = _model()
    batch = collate(make_sequences([6, 6, 5, 4]), max_length=6)
    target = torch.zeros_like(batch.item_index)
    wanted = torch.tensor([[3], [9], [12], [25]])
    batch = replace(batch, target=target.scatter(1, (batch.length - 1)[:, None], wanted))
    learn(model, batch, updates=600)
    first = (model.user_embeddings(batch) @ model.item_embeddings().T).argmax(dim=-1) + 1  # (B, R)
    assert bool((first == wanted).any(dim=1).all())


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="num_interests must be at least 1, got 0"):
        ComiRecConfig(num_interests=0)
