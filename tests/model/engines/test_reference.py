"""Every engine gives the model's answer: its own code in float64, under the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.batch import collate
from tests.model.engines.conftest import (
    ENGINES,
    error,
    make_engine,
    ragged,
    reference,
    sequences,
    tower_model,
)

FP32, BF16 = 1e-5, 3e-4
"""Seen: up to 1.2e-6 and 9.5e-5. Without its last two steps in fp32, bf16 is ten times further away."""
ODD: dict[str, Any] = {
    "embedding_dim": 20,
    "unet_channels": (10, 7, 23),
    "feed_forward_hidden": 13,
    "activation_hidden": 5,
    "max_length": 23,
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"unet_padding": "same"},
    {"unet_padding": "same", "max_length": 51},
    {"readout": "mean"},
    {"history_attention": "multi_head"},
    {"history_attention": "activation_unit"},
    {"num_layers": 3, "num_heads": 4},
    {"num_layers": 1, "readout": "mean"},
    {"session_gap_seconds": 100_000},
    {"time_lag": False},
    {"predicted_next": "learned_token"},
    {"predicted_next": "last_behaviour"},
    {"predicted_next": "regressed"},
    {"drift_preparation": False},
    {"num_routes": 3},
    {"num_inference_steps": 7},
    {"num_inference_steps": 10, "sampler": "ddim"},
    ODD,
    {**ODD, "unet_padding": "same", "history_attention": "multi_head"},
]


def _tolerance(engine: str) -> float:
    return BF16 if engine.endswith("bf16") else FP32


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_engine_equals_the_reference_on_a_ragged_batch(settings: dict[str, Any], engine: str) -> None:
    model = tower_model(**settings)
    batch = ragged(model)
    keys = [2**63 + 11 * number for number in range(len(batch.length))]
    found = make_engine(model, engine).user_embeddings(batch, keys)
    assert found.shape == (len(keys), model.num_routes, model.embedding_dim)
    assert error(found, reference(model, batch, keys)) < _tolerance(engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("length", [1, 2, 10, 11, 50])
def test_an_engine_equals_the_reference_on_one_sequence(length: int, engine: str) -> None:
    model = tower_model()
    batch = collate(sequences([length]), max_length=50)
    found = make_engine(model, engine).user_embeddings(batch, [7])
    assert error(found, reference(model, batch, [7])) < _tolerance(engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_equals_the_reference_without_times(engine: str) -> None:
    model = tower_model()
    batch = ragged(model, known_times=False)
    keys = list(range(len(batch.length)))
    found = make_engine(model, engine).user_embeddings(batch, keys)
    assert error(found, reference(model, batch, keys)) < _tolerance(engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pause_that_training_has_not_seen_counts_as_unknown(engine: str) -> None:
    model = tower_model(max_length=12)
    batch = collate(sequences([12]), max_length=12)
    seen = model.seen_gap.clone()
    try:
        model.seen_gap.zero_()
        expected = reference(model, batch, [7])
        assert error(make_engine(model, engine).user_embeddings(batch, [7]), expected) < _tolerance(engine)
    finally:
        model.seen_gap.copy_(seen)
    assert error(reference(model, batch, [7]), expected) > 0.01, "the case would not show a difference"


@pytest.mark.parametrize("engine", ENGINES)
def test_lags_at_the_edges_of_their_buckets(engine: str) -> None:
    """Lags of 2^b - 1, 2^b and 2^b + 1 seconds, none, negative ones and centuries."""
    model = tower_model(max_length=12)
    last = 1_700_000_000
    lags = [2**40, 2**31, 2**30 - 1, 2**30, 65, 64, 63, 2, 1, 0, -5, 0]
    (sequence,) = sequences([12])
    sequence = sequence._replace(
        timestamp=torch.tensor([last - lag for lag in lags]).numpy(), request_time=last
    )
    batch = collate([sequence], max_length=12)
    found = make_engine(model, engine).user_embeddings(batch, [7])
    assert error(found, reference(model, batch, [7])) < _tolerance(engine)


def test_the_reference_feels_what_the_engines_are_tested_for() -> None:
    """Other noise, other times and another history move the answer far beyond every tolerance."""
    model = tower_model()
    batch = ragged(model)
    keys = list(range(len(batch.length)))
    expected = reference(model, batch, keys)
    assert (reference(model, batch, [*keys[:-1], 99]) - expected)[-1].norm() > 10 * BF16 * expected[-1].norm()
    assert error(reference(model, ragged(model, known_times=False), keys), expected) > 10 * BF16
    moved = batch.item_index.clone()
    moved[-1, 0] = moved[-1, 0] % 300 + 1
    other = type(batch)(moved, batch.timestamp, batch.length, batch.request_time)
    assert (reference(model, other, keys) - expected)[-1].norm() > FP32 * expected[-1].norm()
