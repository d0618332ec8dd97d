"""`t2diff-index bench` measures what it says: overlap, ratios, memory, a report and flat figures."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from index_builder import cli
from index_builder.ann import KINDS
from index_builder.benchmark import Corpus, Measurement, measure_corpus
from index_builder.benchmark_corpora import bundle_corpus, parse_kinds, parse_sizes, size_label
from index_builder.benchmark_report import best_of, figures, table
from index_builder.clustered_embeddings import generate_embeddings
from tests import forked


def measurement(kind: str, overlap: float, over_flat: float) -> Measurement:
    return Measurement(
        label="1m",
        num_items=1_000_000,
        kind=kind,
        chosen=kind == "hnsw",
        width=8,
        rescored=0,
        overlap=overlap,
        build_seconds=1.5,
        tune_seconds=0.5,
        file_gib=0.25,
        rss_gib=0.5,
        us_per_query={1: 20.0, 32: 10.0},
        over_flat={1: over_flat / 2, 32: over_flat},
    )


def test_the_best_is_the_fastest_that_finds_enough():
    measured = [
        measurement("flat", 1.0, 1.0),
        measurement("hnsw", 0.98, 80.0),
        measurement("torch", 0.99, 20.0),
    ]
    assert best_of(measured, 0.99).kind == "torch"
    assert best_of(measured[1:2], 0.99).kind == "hnsw"
    flat = figures(measured, 0.99)
    assert flat["hnsw_over_flat_1m"] == 80.0
    assert flat["hnsw_over_flat_b1_1m"] == 40.0
    assert flat["best_over_flat_1m"] == 20.0
    assert flat["overlap_best_1m"] == 0.99
    assert flat["rss_gib_best_1m"] == 0.5
    assert all(isinstance(value, float) for value in flat.values())
    assert "| **hnsw** |" in table(measured)


def quickly_timed(monkeypatch) -> None:
    """Few rounds, and memory of forks: for what says nothing of times and memory."""
    monkeypatch.setattr("index_builder.benchmark._ROUNDS", 2)
    monkeypatch.setattr("index_builder.benchmark._MAX_SECONDS_PER_ROUND", 0.05)
    monkeypatch.setattr(sys, "executable", forked.python())


def test_a_corpus_is_measured_with_users_that_it_was_not_tuned_on(monkeypatch):
    items, users = generate_embeddings(3_000, 16, num_users=64)
    told: list[str] = []
    corpus = Corpus("3k", items, users)
    quickly_timed(monkeypatch)
    measured = measure_corpus(
        corpus, kinds=["ivf_flat", "flat"], top_k=10, target_overlap=0.95, report=told.append
    )
    assert [entry.kind for entry in measured] == ["flat", "ivf_flat"]
    assert measured[0].over_flat == {1: 1.0, 32: 1.0}
    assert measured[0].overlap == 1.0
    assert 0.85 < measured[1].overlap < 1.0
    assert all(entry.us_per_query[1] > 0 for entry in measured)
    assert measured[0].file_gib * 2**30 == pytest.approx(items.nbytes, rel=0.1)
    assert told[0] == "3k: flat"


def test_memory_is_that_of_what_is_searched(monkeypatch):
    items, users = generate_embeddings(100_000, 64, num_users=8)
    monkeypatch.setattr("index_builder.benchmark._ROUNDS", 1)
    monkeypatch.setattr("index_builder.benchmark._MAX_SECONDS_PER_ROUND", 0.05)
    corpus = Corpus("100k", items, users)
    flat, half = measure_corpus(corpus, kinds=["flat_fp16"], top_k=10, target_overlap=0.9)
    assert flat.rss_gib * 2**30 == pytest.approx(items.nbytes, rel=0.4)
    assert half.rss_gib < 0.75 * flat.rss_gib


def test_a_bundle_is_measured_by_its_own_embeddings(built):
    corpus = bundle_corpus(built, num_users=10)
    assert corpus.items.shape == (60, 8)
    assert corpus.users.shape[0] <= 10
    assert np.isfinite(corpus.users).all()


@pytest.mark.parametrize(
    ("size", "label"), [(3_706, "3706"), (108_000, "108k"), (10_000_000, "10m"), (7, "7")]
)
def test_sizes_have_short_names(size, label):
    assert size_label(size) == label


def test_sizes_and_kinds_are_checked():
    assert parse_sizes("3706, 108000") == [3_706, 108_000]
    for wrong in ("", "a", "1,-2", "0", "1.5"):
        with pytest.raises(ValueError, match="items must be whole numbers separated by commas"):
            parse_sizes(wrong)
    assert parse_kinds("") == list(KINDS)
    with pytest.raises(ValueError, match=r"index kind must be one of flat, .*, got 'annoy'"):
        parse_kinds("flat,annoy")


def test_the_command_prints_a_table_and_writes_figures_and_a_report(monkeypatch, capsys, tmp_path):
    arguments = ["--items", "500,2000", "--dim", "8", "--top-k", "10", "--kinds", "ivf_flat", "--users", "20"]
    files = ["--json", str(tmp_path / "figures.json"), "--out", str(tmp_path / "results")]
    quickly_timed(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["t2diff-index", "bench", *arguments, *files])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert not exit_info.value.code
    assert capsys.readouterr().out.count("\n") == 2 + 4
    figures_read = json.loads((tmp_path / "figures.json").read_text())
    assert {"ivf_flat_over_flat_2k", "best_over_flat_500", "overlap_best_2k", "rss_gib_best_2k"} <= set(
        figures_read
    )
    (report,) = (tmp_path / "results").iterdir()
    text = report.read_text()
    assert "command: `t2diff-index bench --items 500,2000" in text
    assert "hardware: " in text
    assert "| 2,000 | ivf_flat |" in text
