"""What only the fused engine promises: independence of the batch bit by bit, and clear refusals."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch

from model.batch import SequenceBatch, collate
from model.engines.fused import FusedTower
from model.engines.interface import TowerEngine
from tests.model.engines.conftest import SMALL, VARIANTS, library, make_engine, sequences, tower_model

LENGTHS = [50, 1, 7, 12, 50, 33, 2]


@pytest.mark.parametrize("settings", [{}, {"unet_padding": "same"}, {"num_routes": 2}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_what_each_member_gets_alone_bit_by_bit(variant: str, settings: dict) -> None:
    model = tower_model(**settings)
    engine = make_engine(model, variant)
    made = sequences(LENGTHS)
    together = engine.user_embeddings(collate(made, max_length=50), list(range(len(made))))
    for number, sequence in enumerate(made):
        alone = engine.user_embeddings(collate([sequence], max_length=50), [number])
        assert torch.equal(alone[0], together[number])


def test_what_stands_in_the_padding_does_not_matter() -> None:
    engine = _engine()
    batch = collate(sequences([3, 12]), max_length=50)
    filled = dataclasses.replace(
        batch, item_index=batch.item_index.clone(), timestamp=batch.timestamp.clone()
    )
    filled.item_index[0, 3:] = 299
    filled.timestamp[0, 3:] = 1_600_000_000
    wider = SequenceBatch(
        torch.nn.functional.pad(batch.item_index, (0, 9)),
        torch.nn.functional.pad(batch.timestamp, (0, 9), value=-1),
        batch.length,
        batch.request_time,
    )
    expected = engine.user_embeddings(batch, [1, 2])
    assert torch.equal(engine.user_embeddings(filled, [1, 2]), expected)
    assert torch.equal(engine.user_embeddings(wider, [1, 2]), expected)


def test_any_number_of_threads_gives_the_same() -> None:
    model = tower_model(**SMALL)
    batch = collate(sequences(LENGTHS), max_length=50)
    keys = list(range(len(LENGTHS)))
    expected = FusedTower(model, library()).user_embeddings(batch, keys)
    for num_threads in (2, 3, 99):
        engine = FusedTower(model, library(), num_threads=num_threads)
        for _ in range(3):
            assert torch.equal(engine.user_embeddings(batch, keys), expected)


def test_two_engines_run_beside_each_other() -> None:
    """As while a new bundle is warmed up and the old one answers."""
    model = tower_model(**SMALL)
    batch = collate(sequences(LENGTHS), max_length=50)
    keys = list(range(len(LENGTHS)))
    engines = [FusedTower(model, library()) for _ in range(2)]
    expected = engines[0].user_embeddings(batch, keys)
    wrong: list[int] = []

    def run(engine: TowerEngine) -> None:
        for turn in range(20):
            if not torch.equal(engine.user_embeddings(batch, keys), expected):
                wrong.append(turn)

    threads = [threading.Thread(target=run, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_nan_in_any_weight_reaches_the_answer() -> None:
    model = tower_model(**SMALL)
    batch = collate(sequences([12]), max_length=50)
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        try:
            parameter.data.flatten()[-1 if "table" not in name else slice(None)] = float("nan")
            if "lag_bias" in name or "of_lag" in name or "of_gap" in name or "distance_bias" in name:
                parameter.data.fill_(float("nan"))
            answer = FusedTower(model, library()).user_embeddings(batch, [1])
        finally:
            parameter.data.copy_(kept)
        assert torch.isnan(answer).any(), name


def test_wrong_inputs_are_refused_by_name() -> None:
    engine = _engine()
    batch = collate(sequences([3, 12]), max_length=50)
    with pytest.raises(ValueError, match="keys: 1 were given for 2"):
        engine.user_embeddings(batch, [1])
    for item in (0, -1, 301, 2**40):
        broken = batch.item_index.clone()
        broken[1, 2] = item
        with pytest.raises(ValueError, match=rf"item_index: sequence 1 .*1\.\.300.*{item}"):
            engine.user_embeddings(dataclasses.replace(batch, item_index=broken), [1, 2])
    for length in (0, -3, 13):
        with pytest.raises(ValueError, match=rf"length: sequence 0 has {length}, not 1\.\.12"):
            engine.user_embeddings(dataclasses.replace(batch, length=torch.tensor([length, 12])), [1, 2])
    assert torch.isfinite(engine.user_embeddings(batch, [1, 2])).all()


def test_an_engine_can_be_let_go_of() -> None:
    """Engines come and go with bundles; memory must not grow with them."""
    model = tower_model()
    batch = collate(sequences([50]), max_length=50)

    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    def churn() -> None:
        for _ in range(30):
            FusedTower(model, library()).user_embeddings(batch, [1])

    churn()
    before = resident()
    churn()
    assert resident() - before < 15 * 2**20  # thirty towers are above 30 MiB


def _engine() -> TowerEngine:
    return FusedTower(tower_model(**SMALL), library())
