from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.dataset import Split
from model.experiments.comparison import compare
from model.experiments.recorded_runs import (
    fuller_tests,
    intervals_of_figures,
    recorded_entries,
    runs_to_do,
)
from model.experiments.runs import plan_run
from model.experiments.search import read_tuned
from model.significance import bootstrap_intervals, seed_and_user_intervals
from tests.model.experiments.conftest import BASE, OWN, plan

OWNER = {"dataset": "Drift", "split": "leave_one_out"}


def _entries(out: Path) -> list[dict[str, Any]]:
    return list(json.loads((out / "results.json").read_text()))


def test_seeds_of_two_machines_meet_in_one_table(split: Split, tmp_path: Path) -> None:
    out, work, lost = tmp_path / "out", tmp_path / "work", tmp_path / "lost"
    specs = ("popularity", "sasrec:tiny", "markov")
    given: dict[str, Any] = {"dataset": "Drift", "reference": "sasrec:tiny", "num_processes": 1}
    compare(split, plan(split, lost, *specs, seeds=(0, 1)), out, **given, resume=False)
    first = _entries(out)
    shutil.rmtree(lost)

    runs = plan(split, work, *specs[:2], seeds=(0, 1, 2, 3, 4)) + plan(split, work, specs[2], seeds=(0, 1, 2))
    known = recorded_entries(first, runs, OWNER)
    assert known == first
    assert [(run.spec, run.training.seed) for run in runs_to_do(runs, known)] == [
        *(("popularity", 2), ("sasrec:tiny", 2), ("popularity", 3), ("sasrec:tiny", 3)),
        *(("popularity", 4), ("sasrec:tiny", 4), ("markov", 2)),
    ]
    compare(split, runs, out, **given, resume=True, recorded=known)

    assert not any(run.begun for run in runs if run.training.seed < 2)
    assert [entry for entry in _entries(out) if entry["seed"] < 2] == first
    summary = json.loads((out / "summary.json").read_text())
    rows = {row["model"]: row for row in summary["rows"] if row["part"] == "test"}
    assert rows["sasrec"]["seeds"] == [0, 1, 2, 3, 4]
    of_seeds = [
        e["metrics"]["recall_at_20"] for e in _entries(out) if (e["model"], e["part"]) == ("sasrec", "test")
    ]
    assert rows["sasrec"]["metrics"]["recall_at_20"] == pytest.approx(sum(of_seeds) / 5, abs=1e-6)
    low, high = rows["sasrec"]["intervals"]["recall_at_20"]
    assert low < rows["sasrec"]["metrics"]["recall_at_20"] < high
    tested = {test["against_model"]: test["seeds"] for test in summary["tests"]}
    assert tested == {"popularity": [2, 3, 4], "markov": [0, 1]}  # the earlier one has more seeds


def test_only_what_is_the_same_run_of_the_same_data_counts_as_recorded(split: Split, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = plan(split, tmp_path / "work", "popularity", "markov")
    compare(split, runs, out, dataset="Drift", reference=None, num_processes=1, resume=False)
    entries = _entries(out)
    assert recorded_entries(entries, runs, OWNER) == []  # the runs themselves are there
    elsewhere = plan(split, tmp_path / "elsewhere", "popularity", seeds=(0, 1))
    assert recorded_entries(entries, elsewhere, OWNER) == entries[:2]
    assert recorded_entries(entries, elsewhere, {**OWNER, "dataset": "Other"}) == []
    assert runs_to_do(elsewhere, entries[:2]) == elsewhere[1:]


def test_the_interval_of_figures_is_nearly_that_of_ranks() -> None:
    """Users who differ and seeds that differ, in a proportion where leaving either out would show."""
    rng = np.random.default_rng(0)
    of_users, of_seeds = rng.normal(0, 1.0, 2_000), rng.normal(0, 0.05, 5)
    values = (of_users + of_seeds[:, None] + rng.normal(0, 0.5, (5, 2_000)))[..., None]  # (S, Q, 1)
    entries = [
        {
            "metrics": {"x": float(of_seed.mean())},
            "intervals": {"x": bootstrap_intervals(of_seed)[0].tolist()},
        }
        for of_seed in values
    ]
    (drawn,) = seed_and_user_intervals(values)
    low, high = intervals_of_figures(entries)["x"]
    assert high - low == pytest.approx(drawn[1] - drawn[0], rel=0.15)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=1e-6)


def test_a_test_with_more_seeds_stays_and_one_of_another_reference_goes() -> None:
    test = {**OWNER, "model": "t2diff", "variant": "", "metric": "recall_at_20", "questions": "all"}
    old = [
        {**test, "against_model": "sasrec", "against_variant": "", "seeds": [0, 1]},
        {**test, "against_model": "dat", "against_variant": "", "seeds": [0, 1]},
        {**test, "against_model": "stosa", "against_variant": "", "seeds": [0, 1], "model": "caser"},
        {**test, "against_model": "stosa", "against_variant": "", "seeds": [0, 1], "dataset": "Other"},
    ]
    new = [{**old[0], "seeds": [2, 3]}, {**old[1], "seeds": [2]}]
    assert fuller_tests(new, old, OWNER, "t2diff") == [new[0], old[1]]


def test_settings_are_taken_from_an_earlier_comparison(split: Split, tmp_path: Path) -> None:
    out, wide = tmp_path / "out", tmp_path / "wide"
    runs = plan(split, tmp_path / "work", "sasrec:tiny", "popularity")
    compare(split, runs, out, dataset="Drift", reference=None, num_processes=1, resume=False)
    tuned = read_tuned([out / "results.json"])
    assert tuned["sasrec:tiny"].model == runs[0].model_config
    assert tuned["sasrec:tiny"].training["batch_size"] == BASE.batch_size
    assert OWN["sasrec"]["tiny"].model["embedding_dim"] == tuned["sasrec:tiny"].model["embedding_dim"]
    wide.mkdir()
    for text in ("{", "[1]", '[{"model": "sasrec", "variant": ""}]'):
        (wide / "results.json").write_text(text)
        with pytest.raises(ValueError, match="not the results"):
            read_tuned([wide / "results.json"])


def test_a_setting_younger_than_a_record_leaves_its_runs_found(split: Split, tmp_path: Path) -> None:
    """As `exclude_seen` is: at the value that all had before it, it does not shape the digest."""
    (plain,) = plan(split, tmp_path, "sasrec:tiny")
    (excluding,) = plan(split, tmp_path, "sasrec:tiny+exclude_seen")
    assert plain.model_config["exclude_seen"] is False
    without = {name: value for name, value in plain.model_config.items() if name != "exclude_seen"}

    def planned(config: dict[str, Any]) -> str:
        return plan_run(
            tmp_path, split, model="sasrec", variant="tiny", model_config=config, training=plain.training
        ).folder.name

    assert planned(plain.model_config) == planned(without) == plain.folder.name
    assert planned(excluding.model_config) not in (plain.folder.name, planned({**without, "dropout": 0.5}))
    assert planned({**without, "dropout": 0.5}) != plain.folder.name
