from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.dataset import Split
from model.evaluation import metrics_of_ranks
from model.experiments.comparison import compare, parse_models, parse_seeds, plan_comparison
from model.experiments.measured_run import carry_out
from model.experiments.results import summarise
from model.experiments.runs import Run, alone_in
from model.registry import MODELS
from tests import forked
from tests.model.experiments.conftest import BASE, OWN, plan

SPECS = ("t2diff:tiny", "t2diff:tiny+learned_token", "sasrec:tiny", "popularity")


def _compare(split: Split, runs: list[Run], out: Path, **given: Any) -> dict[str, str]:
    settings: dict[str, Any] = {
        "dataset": "Drift",
        "reference": runs[0].spec,
        "num_processes": 2,
        "resume": False,
    }
    return compare(split, runs, out, **{**settings, **given})


def _without_clocks(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clocks = {"train_seconds", "train_targets_per_second", "ms_per_sample"}
    return [{name: value for name, value in entry.items() if name not in clocks} for entry in entries]


def test_specs_and_seeds_are_read_as_they_are_written() -> None:
    assert parse_models("t2diff@3, sasrec:lag", [7]) == {"t2diff": [0, 1, 2], "sasrec:lag": [7]}
    every = parse_models("all,t2diff@2", [5])
    assert list(every) == list(MODELS)
    assert (every["t2diff"], every["sasrec"]) == ([0, 1], [5])
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    for text in ("t2diff@", "t2diff@0", "t2diff@x", " ,"):
        with pytest.raises(ValueError, match="models: "):
            parse_models(text, [0])
    for text in ("", "a", "1-", "3-1"):
        with pytest.raises(ValueError, match="seeds must be like"):
            parse_seeds(text)


def test_runs_are_planned_seed_by_seed_in_folders_of_their_own(split: Split, tmp_path: Path) -> None:
    runs = plan_comparison(split, tmp_path, {"t2diff:tiny": [0, 1], "popularity": [0]}, base=BASE, own=OWN)
    assert [run.name for run in runs] == ["t2diff:tiny seed 0", "popularity seed 0", "t2diff:tiny seed 1"]
    assert len({run.folder for run in runs}) == 3
    again = plan_comparison(split, tmp_path, {"popularity": [0]}, base=BASE, own=OWN)
    assert again[0].folder == runs[1].folder
    longer = dataclasses.replace(BASE, epochs=9)
    assert plan_comparison(split, tmp_path, {"popularity": [0]}, base=longer)[0].folder != runs[1].folder
    elsewhere = dataclasses.replace(BASE, device="cuda", num_threads=7)
    assert plan_comparison(split, tmp_path, {"popularity": [0]}, base=elsewhere)[0].folder == runs[1].folder


def test_a_comparison_from_nothing_to_tables(split: Split, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    runs = plan(split, work, *SPECS)
    assert _compare(split, runs, out, dataset="ML-1M") == {}
    entries = json.loads((out / "results.json").read_text())
    assert [(entry["model"], entry["variant"], entry["part"]) for entry in entries[:2]] == [
        ("t2diff", "tiny", "test"),
        ("t2diff", "tiny", "validation"),
    ]
    assert len(entries) == 2 * len(SPECS)
    for entry, run in zip(entries[::2], runs, strict=True):
        ranks = run.ranks("test")
        assert len(ranks) == entry["users"] == len(split.test)
        yardstick = metrics_of_ranks(ranks)
        assert {name: entry["metrics"][name] for name in yardstick} == pytest.approx(yardstick, abs=1e-6)
        masked = metrics_of_ranks(run.ranks("test", "rank_unseen"))
        assert entry["metrics_seen_masked"]["mrr_at_20"] == pytest.approx(masked["mrr_at_20"], abs=1e-6)
        low, high = entry["intervals"]["recall_at_20"]
        assert low <= entry["metrics"]["recall_at_20"] <= high
        assert sum(g["users"] for name, g in entry["metrics_by_gap"].items() if name != "above_0_s") == len(
            ranks
        )
        assert {"coverage_at_20", "log_popularity_at_20", "head_share_at_20", "diversity_at_20"} <= entry[
            "metrics"
        ].keys()
        assert {
            "params",
            "train_seconds",
            "ms_per_sample",
            "settings",
            "seed",
            "split",
            "dataset",
        } <= entry.keys()
        assert ("metrics_time_hidden" in entry) == (run.model == "t2diff")
        assert ("intent_trust" in entry) == (run.spec == "t2diff:tiny")
    assert str(tmp_path) not in (out / "results.json").read_text() + (out / "summary.json").read_text()
    table = (out / "table.md").read_text()
    assert "| T2Diff | – | – | 0.0774 |" in table
    assert "| sasrec:tiny | 1 | " in table
    names = {path.name for path in out.iterdir()}
    pictures = {"recall_by_k", "recall_by_time", "drift_similarity", "intent_trust"}
    assert names == {"results.json", "summary.json", "table.md", "schedules.png"} | {
        f"{picture}-ml-1m.png" for picture in pictures
    }
    assert not any(path.suffix in (".pkl", ".pt", ".pth") for path in work.rglob("*"))


def test_finished_runs_are_kept_and_other_data_stays(split: Split, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    few = plan(split, work, "popularity", "sasrec:tiny")
    _compare(split, few, out)
    before = {path: path.stat().st_mtime_ns for path in work.rglob("figures.json")}
    for folder in (out, tmp_path / "fresh"):
        with pytest.raises(ValueError, match="--resume"):
            _compare(split, few, folder)
    more = plan(split, work, "popularity", "sasrec:tiny", "markov")
    _compare(split, more, out, resume=True)
    carry_out(few[0], split, lambda share, words: None)  # as a second command at the same time would
    assert {path: path.stat().st_mtime_ns for path in before} == before
    entries = json.loads((out / "results.json").read_text())
    assert {entry["model"] for entry in entries} == {"popularity", "sasrec", "markov"}
    _compare(split, more[:1], out, resume=True, dataset="Other")
    both = json.loads((out / "results.json").read_text())
    assert both[: len(entries)] == entries
    assert [entry["dataset"] for entry in both[len(entries) :]] == ["Other", "Other"]
    assert "## Drift" in (out / "table.md").read_text()
    assert "## Other" in (out / "table.md").read_text()


def test_models_are_tested_on_the_seeds_that_both_have(split: Split, tmp_path: Path) -> None:
    runs = [
        *plan(split, tmp_path, "popularity", seeds=(0, 1)),
        *plan(split, tmp_path, "markov", seeds=(1, 2)),
    ]
    runs += plan(split, tmp_path, "item_knn", seeds=(3,))
    for run in runs:
        carry_out(run, split, lambda share, words: None)
    summary = summarise(runs, dataset="Drift", split=split, reference="popularity")
    assert {test["against_model"] for test in summary["tests"]} == {"markov"}
    assert all(test["seeds"] == [1] for test in summary["tests"])
    recall = {run.model: metrics_of_ranks(run.ranks("test"))["recall_at_20"] for run in runs}
    (test,) = (
        test for test in summary["tests"] if (test["metric"], test["questions"]) == ("recall_at_20", "all")
    )
    assert (test["ours"], test["theirs"]) == pytest.approx((recall["popularity"], recall["markov"]), abs=1e-6)
    (row,) = (row for row in summary["rows"] if (row["model"], row["part"]) == ("markov", "test"))
    assert row["seeds"] == [1, 2]
    assert row["metrics"]["recall_at_20"] == pytest.approx(recall["markov"], abs=1e-6)


def test_a_run_that_fails_is_named_and_the_others_count(split: Split, tmp_path: Path) -> None:
    runs = plan(split, tmp_path / "work", "sasrec:tiny", "popularity")
    bad = dataclasses.replace(
        runs[0], training=dataclasses.replace(BASE, learning_rate=1e30, max_gradient_norm=1e30)
    )
    failed = _compare(split, [bad, runs[1]], tmp_path / "out", reference="popularity")
    assert list(failed) == ["sasrec:tiny seed 0"]
    assert "FloatingPointError" in (bad.folder / "error.txt").read_text()
    assert {entry["model"] for entry in json.loads((tmp_path / "out" / "results.json").read_text())} == {
        "popularity"
    }
    assert _compare(split, runs, tmp_path / "out", resume=True, reference="popularity").keys() <= {
        runs[0].name
    }


def test_a_folder_has_one_process_at_work(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "run"),
        pytest.raises(ValueError, match="another process is at work"),
        alone_in(tmp_path / "run", patience_seconds=0.2),
    ):
        pass
    with alone_in(tmp_path / "run", patience_seconds=0):
        pass


def test_a_comparison_survives_kill_minus_nine(split: Split, tmp_path: Path) -> None:
    """Killed twice while it really trains; then the results are those of an undisturbed one."""
    script = tmp_path / "go.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from model.data.dataset import leave_one_out\n"
        "from model.data.synthetic import generate_drift_log\n"
        "from tests.model.experiments.conftest import plan\n"
        "from tests.model.experiments.test_comparison import _compare\n"
        "if __name__ == '__main__':\n"
        "    log = generate_drift_log(num_users=60, num_items=40, seed=1, now=1_700_000_000).interactions()\n"
        "    split, folder = leave_one_out(log), Path(sys.argv[1])\n"
        "    runs = plan(split, folder / 'work', 't2diff:tiny', 'sasrec:tiny')\n"
        "    show = lambda *words: print(*words, flush=True)\n"
        "    _compare(split, runs, folder / 'out', resume=True, on_report=show)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "killed")]
    for lines in (1, 3):
        process = forked.start(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    runs = plan(split, tmp_path / "killed" / "work", "t2diff:tiny", "sasrec:tiny")
    assert any(run.begun for run in runs)
    assert not all(run.finished for run in runs)
    assert _compare(split, runs, tmp_path / "killed" / "out", resume=True) == {}
    whole = plan(split, tmp_path / "whole" / "work", "t2diff:tiny", "sasrec:tiny")
    _compare(split, whole, tmp_path / "whole" / "out")
    left, right = (
        _without_clocks(json.loads((tmp_path / name / "out" / "results.json").read_text()))
        for name in ("killed", "whole")
    )
    assert left == right
    assert len(left) == 4
    summaries = [
        json.loads((tmp_path / name / "out" / "summary.json").read_text()) for name in ("killed", "whole")
    ]
    assert summaries[0]["tests"] == summaries[1]["tests"] != []
    for one, other in zip(runs, whole, strict=True):
        assert np.array_equal(one.ranks("validation"), other.ranks("validation"))


def test_what_a_killed_first_save_leaves_does_not_stop_the_next_attempt(split: Split, tmp_path: Path) -> None:
    (run,) = plan(split, tmp_path / "work", "sasrec:tiny")
    half = run.folder / "train" / ".state-0123"
    half.mkdir(parents=True)
    (half / "state.safetensors").write_bytes(b"half")
    assert _compare(split, [run], tmp_path / "out", resume=True) == {}
    assert not half.exists()
