"""The command line as a person uses it: a real process, a real file, its exit code and its words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.model.conftest import TINY


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run([sys.executable, "-m", "model.cli", *arguments], timeout=120)


def _run_installed(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "t2diff-model", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


SMALL = [part for name, value in TINY.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def test_a_log_of_ones_own_is_inspected_trained_on_and_evaluated(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [
        f"user {u},sku-{(u + s) % 30},{1_700_000_000_000 + 60_000 * s}" for u in range(40) for s in range(9)
    ]
    log.write_text("who,what,when\n" + "\n".join(rows) + "\n")
    columns = ["--user-column", "who", "--item-column", "what", "--timestamp-column", "when"]

    inspected = _run("inspect", "--data", log, *columns)
    assert inspected.returncode == 0, inspected.stderr
    assert "360" in inspected.stdout

    run = tmp_path / "run"
    trained = _run("train", "--data", log, *columns, "--out", run, "--epochs", 2, "--batch-size", 8, *SMALL)
    assert trained.returncode == 0, trained.stderr
    assert "validation/recall_at_20" in trained.stdout
    assert not (tmp_path / "nothing").exists()

    report = tmp_path / "report.json"
    evaluated = _run("evaluate", run, "--data", log, *columns, "--json", report)
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads(report.read_text())
    assert figures["users"] == 40
    assert {f"{kind}_at_{k}" for kind in ("recall", "mrr") for k in (2, 20, 10, 100)} <= figures.keys()

    again = _run("train", "--data", log, *columns, "--out", run, "--epochs", 2, "--batch-size", 8, *SMALL)
    assert again.returncode == 2
    assert "--resume" in again.stderr

    other = tmp_path / "other.csv"
    other.write_text("who,what,when\n" + "\n".join(row.replace("sku-", "thing-") for row in rows) + "\n")
    mismatch = _run("evaluate", run, "--data", other, *columns)
    assert mismatch.returncode == 2
    assert "items of this log" in mismatch.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--set", "dropuot=1"], "no setting 'dropuot'"),
        (["--set", "dropout"], "name=value"),
        (["--split", "random"], "split must be one of"),
        (["--device", "tpu"], "device must be"),
        (["--model", "t3diff"], "model must be one of t2diff"),
        (["--min-interactions", "0"], "min_interactions must be at least 1"),
        (["--item-column", "sku"], "sku"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line_and_exit_code_2_and_writes_nothing(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "user_id,item_id,timestamp\n"
        + "".join(f"u{u},i{s},{1_700_000_000 + s}\n" for u in range(5) for s in range(6))
    )
    given = [] if "--data" in arguments else ["--data", log]
    answer = _run("train", *given, "--out", tmp_path / "run", *arguments)
    assert answer.returncode == 2, answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "run").exists()


def test_parameters_and_schedules_are_reported(tmp_path: Path) -> None:
    counted = _run_installed("parameters")
    assert "192,558" in counted.stdout
    drawn = _run("schedules", "--plot", tmp_path / "schedules.png")
    assert drawn.returncode == 0, drawn.stderr
    assert "a = 0.00178, b = 0.1169" in drawn.stdout
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")
