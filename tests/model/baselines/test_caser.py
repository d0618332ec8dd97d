from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from model.baselines.caser import Caser, CaserConfig
from model.batch import collate
from tests.model.baselines.tiny_models import (
    NUM_ITEMS,
    make_sequences,
    shake,
    tiny_model,
    with_following_targets,
)

_model = partial(tiny_model, Caser)


def test_one_window_is_read_as_the_paper_prints_it() -> None:
    """Eq. 3-9 written out for the last window of a sequence, filter by filter and place by place."""
    model = shake(_model(num_horizontal=4)).eval()
    batch = collate(make_sequences([5]), max_length=6)
    image = model.items.embed(batch.item_index)[0, -3:]  # (L, D) E
    pooled = []
    for height in (1, 2, 3):
        convolution = model.horizontal[height - 1]
        for number in range(4):
            filter_ = convolution.weight[number].T  # (h, D) F^k
            places = [
                F.relu((image[place : place + height] * filter_).sum() + convolution.bias[number])
                for place in range(3 - height + 1)
            ]
            pooled.append(torch.stack(places).max())
    vertical = [
        sum(model.vertical.weight[number, row] * image[row] for row in range(3)) for number in range(2)
    ]
    assert any(value == 0 for value in pooled), "φ_c makes no difference here"
    features = torch.cat([torch.stack(pooled), *vertical])  # type: ignore[list-item]
    expected = F.relu(model.combine.weight @ features + model.combine.bias)
    assert torch.allclose(model.user_embedding(batch)[0], expected, atol=1e-4)
    assert expected.max().item() > 0.1


def test_each_window_is_asked_for_the_following_items() -> None:
    """T = 2 over the targets 4, 5, 6 | 8, 9: (0: 4, 5), (1: 5, 6), (2: 6) and (0: 8, 9), (1: 9)."""
    model = shake(_model(num_following=2)).eval()
    batch = with_following_targets(collate(make_sequences([3, 2]), max_length=6), last=[6, 9])
    target = torch.tensor([[4, 5, 6], [8, 9, 0]])
    states = model.states(batch)
    asked = [(0, 0, 4), (0, 0, 5), (0, 1, 5), (0, 1, 6), (0, 2, 6), (1, 0, 8), (1, 0, 9), (1, 1, 9)]
    losses = [
        F.cross_entropy(model.item_embeddings() @ states[row, column], torch.tensor(item - 1))
        for row, column, item in asked
    ]
    expected = torch.stack(losses).mean().item()
    assert model.training_loss(replace(batch, target=target)).item() == pytest.approx(expected, rel=1e-5)
    last_only = replace(batch, target=target * (target == 9))  # a position without a target asks for none
    assert model.training_loss(last_only).item() == pytest.approx(losses[-1].item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["full_softmax", "binary"])
def test_items_may_be_scored_by_a_table_of_their_own(loss: str) -> None:
    model = shake(_model(output_items="own", loss=loss)).eval()
    batch = with_following_targets(collate(make_sequences([4]), max_length=6), last=[3])
    assert torch.equal(model.item_embeddings(), model.output_table.weight[1:])

    def loss_now() -> float:
        torch.manual_seed(0)
        return model.training_loss(batch).item()

    before, user = loss_now(), model.user_embedding(batch)
    with torch.no_grad():
        model.output_table.weight.mul_(-1)
    assert loss_now() != pytest.approx(before, rel=1e-3)
    assert torch.equal(model.user_embedding(batch), user)


def test_it_reads_the_last_window_and_nothing_before_it() -> None:
    model = shake(_model()).eval()
    (sequence,) = make_sequences([6])
    wanted = model.user_embedding(collate([sequence], max_length=6))
    items = sequence.item_index
    for column, same in ((2, True), (3, False)):
        other = items.copy()
        other[column] = items[column] % NUM_ITEMS + 1
        got = model.user_embedding(collate([sequence._replace(item_index=other)], max_length=6))
        assert torch.allclose(got, wanted) is same


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        CaserConfig(window=0)
    with pytest.raises(ValueError, match="num_following must be at least 1, got 0"):
        CaserConfig(num_following=0)
    with pytest.raises(ValueError, match="output_items must be one of shared, own, got 'tied'"):
        CaserConfig(output_items="tied")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loss must be one of full_softmax, binary"):
        CaserConfig(loss="bpr")  # type: ignore[arg-type]
