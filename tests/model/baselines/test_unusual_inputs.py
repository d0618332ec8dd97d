"""Every registered model on what data sets may bring: no times, one behaviour, a large vocabulary."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import UNKNOWN_TIME, Sequence, SequenceBatch, collate
from model.counted import CountedTower
from model.registry import MODELS, build_model, complete_config
from model.two_tower import TwoTower
from tests.model.baselines.tiny_models import (
    NUM_ITEMS,
    make_noise,
    make_sequences,
    shake,
    with_random_targets,
)
from tests.model.conftest import make_log

TINY: dict[str, Any] = {
    "embedding_dim": 8,
    "max_length": 6,
    "num_steps": 4,
    "unet_channels": (8, 8, 8),
    "unet_step_channels": 8,
    "num_layers": 1,
    "num_heads": 2,
    "feed_forward_hidden": 16,
    "activation_hidden": 8,
    "attention_hidden": 8,
    "hidden": 16,
    "state_dim": 4,
    "window": 3,
    "max_neighbours": 5,
    "num_negatives": 64,
}
"""For every model that has the setting."""

LAGGED = [name for name in MODELS if hasattr(complete_config(name, {}), "time_lag")]
TRAINED = [name for name in MODELS if not isinstance(build_model(name, {}, 5), CountedTower)]


def _model(name: str, num_items: int = NUM_ITEMS, **settings: Any) -> TwoTower:
    torch.manual_seed(0)
    known = {field.name for field in dataclasses.fields(complete_config(name, {}))}
    tiny = {setting: value for setting, value in TINY.items() if setting in known}
    return build_model(name, {**tiny, **settings}, num_items)


def _batch(*lengths: int, known_times: bool = True) -> SequenceBatch:
    sequences = make_sequences(list(lengths))
    if not known_times:
        unknown = [np.full(length, UNKNOWN_TIME) for length in lengths]
        sequences = [Sequence(s.item_index, time) for s, time in zip(sequences, unknown, strict=True)]
    return with_random_targets(collate(sequences, max_length=6))


def _train_once(model: TwoTower, batch: SequenceBatch) -> None:
    if isinstance(model, CountedTower):
        model.fit(make_log([[1, 2, 3], [2, 3, 4, 2]], num_items=model.num_items))
        return
    model.observe_item_counts(torch.ones(model.num_items))
    loss = model.train().training_loss(batch)
    loss.backward()
    assert bool(torch.isfinite(loss))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert bool(torch.isfinite(parameter.grad).all()), name


@torch.inference_mode()
def _scores(model: TwoTower, batch: SequenceBatch) -> torch.Tensor:
    """(B, M), after a look at the shapes."""
    model.eval()
    if isinstance(model, CountedTower):
        return model.score_all(batch)
    keys = list(range(len(batch.length) * model.num_routes))
    users = model.user_embeddings(batch, make_noise(model, keys, batch.item_index.shape[1]))
    items = model.item_embeddings()
    assert users.shape == (len(batch.length), model.num_routes, model.embedding_dim)
    assert items.shape == (model.num_items, model.embedding_dim)
    return (users @ items.T if model.metric == "inner_product" else -torch.cdist(users, items)).amax(dim=1)


def _check(model: TwoTower, batch: SequenceBatch) -> torch.Tensor:
    _train_once(model, batch)
    scores = _scores(model, replace(batch, target=None))
    assert scores.shape == (len(batch.length), model.num_items)
    assert bool(torch.isfinite(scores).all())
    return scores


@pytest.mark.parametrize("name", MODELS)
def test_a_single_behaviour_trains_and_is_served(name: str) -> None:
    _check(_model(name), _batch(1, 1, 1))
    _check(_model(name, max_length=1) if name not in ("popularity", "markov") else _model(name), _batch(1))


@pytest.mark.parametrize("name", MODELS)
def test_a_log_without_times_trains_and_is_served(name: str) -> None:
    _check(_model(name), _batch(6, 3, 1, known_times=False))


@pytest.mark.parametrize("name", LAGGED)
@pytest.mark.parametrize("trained_with_times", [True, False])
def test_the_time_lag_stands_unknown_times_in_training_or_serving(
    name: str, trained_with_times: bool
) -> None:
    model = _model(name, time_lag=True, dropout=0.0)
    _train_once(model, _batch(6, 3, 1, known_times=trained_with_times))
    shake(model)  # the lag's embeddings are zero at first
    for known_times in (False, True):
        assert bool(torch.isfinite(_scores(model, _batch(6, 3, 1, known_times=known_times))).all())


@pytest.mark.parametrize("name", MODELS)
def test_a_large_vocabulary_trains_and_is_served(name: str) -> None:
    """With the default limit the softmax is sampled: only items that were read or drawn get a gradient."""
    num_items = 70_000 if name in TRAINED else 20_000  # the floors count all pairs of items
    model = _model(name, num_items)
    batch = _batch(6, 3, 1)
    batch = replace(batch, target=batch.target * (num_items // NUM_ITEMS))  # type: ignore[operator]  # far apart
    _check(model, batch)
    tables = [each for each in model.parameters() if len(each.shape) == 2 and len(each) == num_items + 1]
    assert bool(tables) == (name in TRAINED)
    for table in tables:
        assert table.grad is not None
        touched = int((table.grad != 0).any(dim=1).sum())
        assert 64 < touched < 300, touched


@pytest.mark.parametrize("name", TRAINED)
def test_with_few_items_no_item_is_left_out_of_the_softmax(name: str) -> None:
    model = _model(name)
    _train_once(model, _batch(6, 3, 1))
    tables = [each for each in model.parameters() if len(each.shape) == 2 and len(each) == NUM_ITEMS + 1]
    assert any(bool((table.grad != 0).any(dim=1)[1:].all()) for table in tables)  # type: ignore[union-attr]
