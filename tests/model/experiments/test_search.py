from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.dataset import EvaluationSet, Split
from model.experiments.comparison import plan_comparison
from model.experiments.search import best_trial, read_records, read_tuned, search
from model.experiments.search_space import OWN as OWN_SPACES
from model.experiments.search_space import LogUniform, draw_settings, model_space
from model.experiments.variants import check_training_settings
from model.registry import MODELS, build_model
from tests.model.experiments.conftest import BASE, OWN

FIXED = {"sasrec": {"tiny": dataclasses.replace(OWN["sasrec"]["tiny"], training={"batch_size": 32})}}


def _search(split: Split, folder: Path, **given: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    settings: dict[str, Any] = {"spec": "sasrec:tiny", "trials": 2, "base": BASE, "own": FIXED}
    return search(split, folder / "trials.jsonl", folder / "work", **{**settings, **given})


@pytest.mark.parametrize("model", MODELS)
def test_every_draw_of_every_model_can_be_built(model: str) -> None:
    for trial in range(6):
        settings, training = draw_settings(model, trial, seed=0)
        assert build_model(model, settings, 30).num_items == 30
        check_training_settings(training)
        assert (settings, training) == draw_settings(model, trial, seed=0)
        assert trial or not settings
    if model_space(model):
        assert draw_settings(model, 1, seed=0) != draw_settings(model, 2, seed=0)


def test_shared_settings_have_one_range_for_all() -> None:
    assert (
        model_space("sasrec")["dropout"]
        is model_space("t2diff")["dropout"]
        is model_space("gru4rec")["dropout"]
    )
    assert "num_heads" not in model_space("gru4rec")
    assert OWN_SPACES["t2diff"].keys() <= model_space("t2diff").keys()


def test_log_uniform_draws_each_decade_alike() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([LogUniform(1e-4, 1e-2).draw(rng) for _ in range(1_000)])
    assert (drawn >= 1e-4).all()
    assert (drawn <= 1e-2).all()
    assert 430 < (drawn < 1e-3).sum() < 570


def test_a_search_records_every_trial_and_never_asks_the_test_part(split: Split, tmp_path: Path) -> None:
    blind = dataclasses.replace(split, test=_Unreadable(**vars(split.test)))
    records, failed = _search(blind, tmp_path, num_processes=2)
    assert not failed
    assert [record["trial"] for record in records] == [0, 1]
    assert records[0]["settings"] == {"model": {}, "training": {}}
    assert records[1]["settings"]["model"].keys() == model_space("sasrec").keys()
    for record in records:
        assert record["spec"] == "sasrec:tiny"
        assert (record["epochs"], record["seed"], record["epochs_run"]) == (2, 0, 2)
        assert record["train_seconds"] > 0
        assert record["wall_seconds"] > 0
        assert 0 <= record["validation"]["recall_at_20"] <= 1
        assert record["dataset_id"] == split.train.fingerprint
    assert (
        read_records(tmp_path / "trials.jsonl") == records
        or sorted(read_records(tmp_path / "trials.jsonl"), key=lambda record: record["trial"]) == records
    )
    assert not any((tmp_path / "work").rglob("*.safetensors"))  # checkpoints of trials are not kept


class _Unreadable(EvaluationSet):
    def sequence(self, question: int) -> Any:
        raise AssertionError("the test part was asked")


def test_a_search_goes_on_where_it_was_cut_off(split: Split, tmp_path: Path) -> None:
    whole, _ = _search(split, tmp_path / "whole")
    file = tmp_path / "cut" / "trials.jsonl"
    file.parent.mkdir()
    first, second = (json.dumps(record) for record in whole)
    file.write_text(first + "\n" + second[:50])  # killed in the middle of a line
    with pytest.raises(ValueError, match="--resume"):
        _search(split, tmp_path / "cut")
    records, _ = _search(split, tmp_path / "cut", resume=True)
    assert records[0] == whole[0]  # not run again: its seconds are those of before
    assert records[1]["validation"] == whole[1]["validation"]
    assert read_records(file) == records
    with pytest.raises(ValueError, match="had epochs 2, this one has 3"):
        _search(split, tmp_path / "cut", resume=True, base=dataclasses.replace(BASE, epochs=3))


def _record(spec: str, trial: int, recall: float, **given: Any) -> dict[str, Any]:
    return {
        **{"spec": spec, "trial": trial, "epochs": 7, "dataset_id": "d"},
        "settings": {
            "model": {"dropout": recall, "embedding_dim": 32},
            "training": {"learning_rate": recall, "batch_size": 64},
        },
        "validation": {"recall_at_20": recall, "mrr_at_20": 1 - recall},
        **given,
    }


def test_a_comparison_uses_the_best_trial(split: Split, tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    records = [_record("sasrec", 0, 0.2), _record("sasrec", 1, 0.4), _record("sasrec", 2, 0.3)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert best_trial(records)["trial"] == 1
    assert best_trial(records, "mrr_at_20")["trial"] == 0
    with pytest.raises(ValueError, match="objective must be one of"):
        best_trial(records, "recall")
    tuned = read_tuned([file])
    runs = plan_comparison(
        split,
        tmp_path / "work",
        {"sasrec": [0], "sasrec:tiny": [0], "t2diff": [0]},
        base=BASE,
        tuned=tuned,
        own=FIXED,
    )
    plain, tiny, other = runs
    assert (plain.model_config["dropout"], plain.training.learning_rate, plain.training.epochs) == (
        0.4,
        0.4,
        7,
    )
    assert (tiny.model_config["embedding_dim"], tiny.training.batch_size) == (8, 32)  # the variant's, over it
    assert tiny.model_config["dropout"] == 0.4
    assert (other.training.learning_rate, other.tuned_on) == (BASE.learning_rate, None)
    assert plain.tuned_on == "d"
    (shorter,) = plan_comparison(split, tmp_path, {"sasrec": [0]}, base=BASE, tuned=tuned, epochs=1)
    assert shorter.training.epochs == 1


def test_a_variant_is_tuned_like_what_it_varies_and_says_its_own_epochs(tmp_path: Path, split: Split) -> None:
    file = tmp_path / "trials.jsonl"
    records = [_record("sasrec", 0, 0.2), _record("sasrec:n200", 0, 0.3), _record("sasrec:lag", 0, 0.4)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    specs = {"sasrec:n200+epochs_18": [0], "sasrec:n200": [0], "sasrec:n50+epochs_18": [0]}
    longer, same, other = plan_comparison(
        split, tmp_path, specs, base=BASE, tuned=read_tuned([file]), epochs=2
    )
    assert [run.model_config["dropout"] for run in (longer, same, other)] == [0.3, 0.3, 0.2]
    assert [run.training.epochs for run in (longer, same, other)] == [18, 2, 18]


def test_records_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    file.write_text("")
    with pytest.raises(ValueError, match="no finished trial"):
        read_tuned([file])
    file.write_text("not json\n")
    with pytest.raises(ValueError, match="not the record of a search"):
        read_tuned([file])
    pair = [_record("sasrec", 0, 0.2), _record("sasrec", 0, 0.2, dataset_id="e")]
    file.write_text("".join(json.dumps(record) + "\n" for record in pair))
    with pytest.raises(ValueError, match="different data"):
        read_tuned([file])
