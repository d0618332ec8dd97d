"""What every trained baseline must satisfy, in each of its forms; what is its own stands in its own file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch

from model.batch import Sequence, SequenceBatch, collate
from model.counted import CountedTower
from model.registry import MODELS, build_model
from model.two_tower import TwoTower
from tests.model.baselines.tiny_models import (
    NUM_ITEMS,
    learn,
    make_noise,
    make_sequences,
    shake,
    tiny_model,
    with_following_targets,
    with_random_targets,
)

Settings = dict[str, Any]
SAMPLED: Settings = {"max_full_softmax_items": 5, "num_negatives": 64}
MAMBA4REC_FORMS: list[Settings] = [{}, {"num_layers": 2}, {"time_lag": True}, SAMPLED]
SASREC_FORMS: list[Settings] = [
    {},
    {"positions": "relative"},
    {"time_lag": True},
    {"normalize_inputs": True, "positions": "relative", "time_lag": True},
    {"loss": "binary"},
    SAMPLED,
]


class Overfit(NamedTuple):
    """Settings with which a model must learn one batch by heart, and how long it may take."""

    settings: Settings
    updates: int = 250
    learning_rate: float = 1e-2


@dataclass(frozen=True)
class Case:
    """What is checked of one model.

    variants: its forms   padded: those checked for padding, when not all of them
    dense: those whose training states must be what serving gives; none where the model has no such states
    noise: noise_dim and num_steps
    """

    variants: list[Settings]
    overfit: list[Overfit]
    dense: list[Settings] = field(default_factory=list)
    padded: list[Settings] | None = None
    noise: tuple[int, int] = (0, 0)


CASES: dict[str, Case] = {
    "bert4rec": Case(
        variants=[{}, {"mask_last_share": 1.0}, SAMPLED],
        padded=[{"embedding_dim": 32}],
        overfit=[Overfit(settings, 400, 5e-3) for settings in ({}, {"mask_last_share": 1.0})],
    ),
    "caser": Case(
        variants=[
            {},
            {"window": 1},
            {"window": 9},  # longer than any sequence
            {"loss": "binary"},
            {"output_items": "own"},
            {"num_following": 3},
            {"output_items": "own", "num_following": 2, "loss": "binary"},
            {"output_items": "own", **SAMPLED},
            SAMPLED,
        ],
        dense=[{}, {"window": 1}, {"window": 9}],
        overfit=[
            Overfit({"embedding_dim": 16, **settings})
            for settings in ({}, {"loss": "binary"}, {"output_items": "own"})
        ],
    ),
    "comirec": Case(
        variants=[
            {},
            {"num_interests": 1},
            {"time_lag": True},
            {"loss": "label_aware"},
            {"normalize_inputs": False},
            {"loss": "label_aware", **SAMPLED},
            SAMPLED,
        ],
        dense=[{}, {"time_lag": True}],
        overfit=[Overfit({"num_interests": 1, "embedding_dim": 16}, 400)],
    ),
    "contrastvae": Case(
        variants=[
            {},
            {"augmentation": "model"},
            {"loss": "binary"},
            {"latent": "shifted"},
            {"latent": "shifted", "augmentation": "model"},
            {"num_layers": 2},
            SAMPLED,
        ],
        dense=[{}, {"num_layers": 2}],
        overfit=[
            Overfit({"embedding_dim": 16, "kl_weight": 0.01, **settings}, updates)
            for settings, updates in (
                ({}, 250),
                ({"augmentation": "model"}, 250),
                ({"latent": "shifted"}, 250),
                ({"loss": "binary"}, 600),
            )
        ],
    ),
    "dat": Case(
        variants=[{}, {"pooling": "mean"}, {"loss": "binary"}, {"num_layers": 2}, SAMPLED],
        padded=[{}, {"pooling": "mean"}],
        dense=[{}, {"pooling": "mean"}],
        overfit=[Overfit(settings, 400) for settings in ({}, {"pooling": "mean"}, {"loss": "binary"})],
    ),
    "diffurec": Case(
        variants=[
            {},
            {"supervision": "last"},
            {"num_inference_steps": 2},
            {"uncertainty": 0.3},
            {"uncertainty": 0.3, "supervision": "last"},
            SAMPLED,
        ],
        noise=(8, 4),
        overfit=[Overfit({}), Overfit({"uncertainty": 0.1}), Overfit({"supervision": "last"})],
    ),
    "gru4rec": Case(
        variants=[{}, {"num_layers": 2}, {"time_lag": True}, {"loss": "top1"}, {"loss": "bpr"}, SAMPLED],
        dense=[{}, {"num_layers": 2}, {"time_lag": True}],
        overfit=[Overfit({})],
    ),
    "mamba4rec": Case(
        variants=MAMBA4REC_FORMS,
        dense=MAMBA4REC_FORMS,
        overfit=[Overfit({})],
    ),
    "sasrec": Case(
        variants=SASREC_FORMS,
        dense=SASREC_FORMS,
        overfit=[
            Overfit({"embedding_dim": 16}),
            Overfit({"embedding_dim": 16, **SASREC_FORMS[3]}),
            Overfit({"embedding_dim": 16, "loss": "binary"}, 1_000),
        ],
    ),
    "stosa": Case(
        variants=[{}, {"num_layers": 2}, {"loss": "ranking"}, SAMPLED],
        dense=[{}, {"num_layers": 2}],
        overfit=[Overfit({"loss": "full_softmax"}), Overfit({"loss": "ranking"}, 600)],
    ),
}


def _each(settings_of: Callable[[Case], list[Settings]]) -> list[Any]:
    return [
        pytest.param(name, settings, id=f"{name}-{settings}")
        for name, case in CASES.items()
        for settings in settings_of(case)
    ]


def _model(name: str, settings: Settings) -> TwoTower:
    model_class = MODELS[name][1]
    assert isinstance(model_class, type)
    return tiny_model(model_class, **settings)


def test_every_trained_baseline_has_a_case() -> None:
    trained = {name for name in MODELS if not isinstance(build_model(name, {}, 5), CountedTower)}
    assert CASES.keys() == trained - {"t2diff"}  # tests/model/test_t2diff.py has its own


@pytest.mark.parametrize(("name", "settings"), _each(lambda case: case.variants))
def test_contract(name: str, settings: Settings) -> None:
    model = _model(name, settings)
    assert (model.noise_dim, model.num_steps) == CASES[name].noise
    batch = with_random_targets(collate(make_sequences([6, 3, 1]), max_length=6))
    assert model.num_items == NUM_ITEMS
    assert model.user_embedding(batch).shape == (3, model.embedding_dim)
    assert model.item_embeddings().shape == (NUM_ITEMS, model.embedding_dim)
    model.observe_item_counts(torch.arange(NUM_ITEMS))
    loss = model.training_loss(batch)
    assert loss.ndim == 0
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} is never trained"
        assert bool(torch.isfinite(parameter.grad).all()), parameter_name


@pytest.mark.parametrize(
    ("name", "settings"), _each(lambda case: case.variants if case.padded is None else case.padded)
)
def test_padding_never_changes_an_embedding(name: str, settings: Settings) -> None:
    """Alone or beside longer sequences, with the same noise, a user's embedding is the same."""
    model = shake(_model(name, settings)).eval()
    sequences = make_sequences([2, 6, 1, 5, 4])
    together = model.user_embedding(collate(sequences, max_length=6), make_noise(model, list(range(5)), 6))
    for number, sequence in enumerate(sequences):
        batch = collate([sequence], max_length=6)
        alone = model.user_embedding(batch, make_noise(model, [number], len(sequence.item_index)))
        assert torch.allclose(alone[0], together[number], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.parametrize(("name", "settings"), _each(lambda case: case.dense))
def test_dense_training_computes_what_serving_the_cut_sequence_would(name: str, settings: Settings) -> None:
    """Position j of the states (N, D) of a whole sequence is what the sequence cut after j gets."""
    model: Any = shake(_model(name, settings)).eval()
    (whole,) = make_sequences([6])
    dense = model.states(collate([whole], max_length=6))[0]
    length = len(whole.item_index)
    for cut in range(1, length + 1):
        asked = int(whole.timestamp[cut]) if cut < length else whole.request_time
        sequence = Sequence(whole.item_index[:cut], whole.timestamp[:cut], asked)
        served = model.user_embedding(collate([sequence], max_length=6), make_noise(model, [9], cut))
        assert torch.allclose(served[0], dense[cut - 1], atol=1e-5), f"position {cut - 1}"


@pytest.mark.parametrize(
    ("name", "overfit"),
    [
        pytest.param(name, overfit, id=f"{name}-{overfit.settings}")
        for name, case in CASES.items()
        for overfit in case.overfit
    ],
)
def test_overfits_one_batch(name: str, overfit: Overfit) -> None:
    model = _model(name, overfit.settings)
    sequences = make_sequences([6, 6, 5, 4])
    batch = with_following_targets(collate(sequences, max_length=6), last=[3, 9, 12, 25])
    learn(model, batch, updates=overfit.updates, learning_rate=overfit.learning_rate)
    model.eval()
    assert _best_items(model, batch) == [3, 9, 12, 25]


def _best_items(model: TwoTower, batch: SequenceBatch) -> list[int]:
    """The item that each user's embedding scores highest, by the model's own metric."""
    user = model.user_embedding(batch, make_noise(model, list(range(len(batch.length))), 6))
    items = model.item_embeddings()
    scores = user @ items.T if model.metric == "inner_product" else -torch.cdist(user, items)
    best: list[int] = (scores.argmax(dim=1) + 1).tolist()
    return best
