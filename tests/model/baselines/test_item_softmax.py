from __future__ import annotations

import math

import pytest
import torch

from model.baselines.item_softmax import ItemSoftmax


def _items(num_items: int = 6, **settings: int | bool) -> ItemSoftmax:
    items = ItemSoftmax(num_items, 4, **settings)  # type: ignore[arg-type]
    torch.nn.init.normal_(items.item_table.weight[1:])
    return items


def test_full_softmax_by_hand() -> None:
    items = ItemSoftmax(3, 2)
    with torch.no_grad():
        items.item_table.weight[1:] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    loss = items.loss(torch.tensor([[1.0, 2.0]]), torch.tensor([2]))  # scores 1, 2, 6
    assert loss.item() == pytest.approx(math.log(math.exp(1) + math.exp(2) + math.exp(6)) - 2)


def test_items_may_be_given_as_a_matrix_or_as_a_tower() -> None:
    items = _items()
    user, target = torch.randn(5, 4), torch.tensor([1, 6, 2, 2, 5])
    expected = items.loss(user, target, 2 * items.item_embeddings())
    assert torch.allclose(items.loss(user, target, lambda index: 2 * items.item_table(index)), expected)
    assert not torch.allclose(items.loss(user, target), expected)


@pytest.mark.parametrize("form", ["table", "matrix", "tower"])
def test_many_samples_approach_the_full_softmax(form: str) -> None:
    items = _items(40, max_full_softmax_items=5, num_negatives=200_000)
    items.observe_item_counts(torch.tensor([1, 50, 400, 9] * 10))
    user, target = torch.randn(3, 4), torch.tensor([1, 39, 7])
    with torch.no_grad():
        items.item_table.weight[40] = 2 * user[0]  # the last item counts for much, padding for nothing
    scored = {"table": None, "matrix": items.item_embeddings(), "tower": items.item_table}[form]
    full = torch.nn.functional.cross_entropy(user @ items.item_embeddings().T, target - 1)
    assert items.loss(user, target, scored).item() == pytest.approx(full.item(), abs=0.02)


def test_an_item_tower_is_asked_only_for_what_is_scored_and_once_for_each() -> None:
    items = _items(1_000, max_full_softmax_items=5, num_negatives=20)
    asked: list[torch.Tensor] = []

    def tower(item_index: torch.Tensor) -> torch.Tensor:
        asked.append(item_index)
        return items.item_table(item_index)

    items.loss(torch.randn(3, 4), torch.tensor([1, 1_000, 1]), tower)
    (index,) = asked
    assert len(index) == len(index.unique()) <= 22
    assert {1, 1_000} <= set(index.tolist())


def test_other_items_are_all_items_but_the_target() -> None:
    items = _items(4)
    drawn = items.other_items(torch.tensor([1, 3, 4]), 400)
    assert [sorted(set(row.tolist())) for row in drawn] == [[2, 3, 4], [1, 2, 4], [1, 2, 3]]


def test_binary_loss_by_hand() -> None:
    """With two items the negative is certain."""
    items = ItemSoftmax(2, 1)
    with torch.no_grad():
        items.item_table.weight[1:] = torch.tensor([[1.0], [3.0]])
    loss = items.binary_loss(torch.tensor([[0.5]]), torch.tensor([1]), num_each=2)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    assert loss.item() == pytest.approx(-math.log(sigmoid(0.5)) - 2 * math.log(1 - sigmoid(1.5)))


def test_normalized_inputs_have_variance_one_and_padding_stays_zero() -> None:
    items = _items(normalize_inputs=True)
    embedded = items.embed(torch.tensor([0, 1, 2]))
    assert embedded[0].tolist() == [0.0] * 4
    assert torch.allclose(embedded[1:].var(dim=-1, unbiased=False), torch.ones(2), atol=1e-3)
    assert torch.equal(items.item_embeddings(), items.item_table.weight[1:])


def test_negatives_follow_the_counts() -> None:
    items = _items(3)
    items.observe_item_counts(torch.tensor([16, 81, 0]))
    assert items.sampling_probability.tolist() == pytest.approx([8 / 36, 27 / 36, 1 / 36])
