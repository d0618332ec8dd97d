"""`compare` and `search` as a person uses them: real processes, real files, exit codes and words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.model.test_cli import _run

TINY_FILE = """
[sasrec.tiny.model]
embedding_dim = 8
max_length = 6
num_layers = 1
feed_forward_hidden = 16
[sasrec.tiny.training]
batch_size = 16
"""


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    log = tmp_path / "walks.csv"
    rows = [f"user{u},item{(u + s) % 30},{1_700_000_000 + 60 * s}" for u in range(40) for s in range(9)]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    (tmp_path / "own.toml").write_text(TINY_FILE)
    return ["--data", log, "--variants", tmp_path / "own.toml", "--jobs", 1]


def test_a_search_feeds_a_comparison(given: list[object], tmp_path: Path) -> None:
    record = tmp_path / "sasrec.jsonl"
    searched = _run("search", *given, "--model", "sasrec:tiny", "--trials", 2, "--epochs", 1, "--out", record)
    assert searched.returncode == 0, searched.stderr
    assert "2 trials; best by validation recall_at_20: trial" in searched.stdout
    trials = [json.loads(line) for line in record.read_text().splitlines()]
    best = max(trials, key=lambda trial: trial["validation"]["recall_at_20"])

    out, work = tmp_path / "out", tmp_path / "work"
    ask = ["compare", *given, "--models", "sasrec:tiny,popularity@1", "--seeds", "4", "--tuned", record]
    ask += ["--out", out, "--work", work, "--reference", "popularity", "--split", "leave-one-out"]
    planned = _run(*ask, "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "sasrec:tiny seed 4" in planned.stdout
    assert not work.exists()
    compared = _run(*ask)
    assert compared.returncode == 0, compared.stderr
    assert "2 of 2" in compared.stderr
    entry = json.loads((out / "results.json").read_text())[0]
    assert (entry["dataset"], entry["model"], entry["variant"], entry["seed"]) == (
        "walks",
        "sasrec",
        "tiny",
        4,
    )
    assert entry["settings"]["training"]["epochs"] == 1  # tuned with one
    for name, value in best["settings"]["model"].items():
        if name not in ("max_length", "num_layers", "feed_forward_hidden"):  # the variant has the last word
            assert entry["settings"]["model"][name] == value
    assert entry["settings"]["tuned_on"] == entry["dataset_id"]
    again = _run(*ask)
    assert (again.returncode, "--resume" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "sasrec:huge"], "no variant 'huge'"),
        (["--models", "sasrec@x"], "number of seeds"),
        (["--models", "popularity", "--seeds", "many"], "seeds must be like"),
        (["--models", "popularity", "--reference", "t2diff"], "reference must be one of"),
        (["--models", "popularity", "--tuned", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
    ids=str,
)
def test_wrong_words_are_one_line_and_nothing_is_written(
    arguments: list[str], words: str, given: list[object], tmp_path: Path
) -> None:
    answer = _run("compare", *given, "--out", tmp_path / "out", "--work", tmp_path / "work", *arguments)
    assert answer.returncode == 2, answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work").exists()
