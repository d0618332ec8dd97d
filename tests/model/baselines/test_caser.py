from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from model.baselines.caser import Caser, CaserConfig
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
)

VARIANTS: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 9},  # longer than any sequence
    {"loss": "binary"},
    {"max_full_softmax_items": 5, "num_negatives": 64},
]


def _model(**settings: Any) -> Caser:
    torch.manual_seed(0)
    tiny = {"embedding_dim": 8, "max_length": 6, "window": 3, "num_horizontal": 5, "num_vertical": 2}
    model = build_model("caser", {**tiny, "dropout": 0.0, **settings}, NUM_ITEMS)
    assert isinstance(model, Caser)
    return model


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_contract(settings: dict[str, Any]) -> None:
    check_contract(_model(**settings))


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_padding_never_changes_an_embedding(settings: dict[str, Any]) -> None:
    check_padding_never_changes_an_embedding(_model(**settings))


@pytest.mark.parametrize("settings", VARIANTS[:3], ids=str)
def test_dense_training_computes_what_serving_the_cut_sequence_would(settings: dict[str, Any]) -> None:
    model = shake(_model(**settings)).eval()
    assert isinstance(model, Caser)
    (whole,) = make_sequences([6])
    check_dense_equals_serving(model, model.states(collate([whole], max_length=6))[0], whole)


@pytest.mark.parametrize("loss", ["full_softmax", "binary"])
def test_overfits_one_batch(loss: str) -> None:
    check_overfits_one_batch(_model(loss=loss, embedding_dim=16))


def test_one_window_is_read_as_the_paper_prints_it() -> None:
    """Eq. 2-8 written out for the last window of a sequence, filter by filter and place by place."""
    model = shake(_model(num_horizontal=4)).eval()
    assert isinstance(model, Caser)
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
    with pytest.raises(ValueError, match="loss must be one of full_softmax, binary"):
        CaserConfig(loss="bpr")  # type: ignore[arg-type]
