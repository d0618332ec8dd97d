"""`t2diff-model report`: what stands in the file, measured apart, and what is said when it cannot be made."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import load_checkpoint
from model.data.dataset import leave_one_out
from model.data.reader import read_interactions
from model.evaluation import metrics_of_ranks, rank_targets
from model.report.model_report import training_curves
from model.report.page import chart, new_figure, page, section, table, write_page


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert command("synthesize", folder / "log.csv", "--users", 60, "--items", 40).returncode == 0
    small = [word for name in ("embedding_dim=8", "num_steps=4") for word in ("--set", name)]
    trained = command(
        "train",
        "--data",
        folder / "log.csv",
        "--out",
        folder / "run",
        "--epochs",
        2,
        "--batch-size",
        2,
        *small,
    )
    assert trained.returncode == 0, trained.stderr
    return folder


def test_the_report_holds_what_evaluation_measures(run: Path) -> None:
    made = command("report", run / "run", "--data", run / "log.csv", "--out", run / "report.html")
    assert made.returncode == 0, made.stderr
    text = (run / "report.html").read_text()
    for title in (
        "Training",
        "Accuracy",
        "Popularity",
        "The reverse process",
        "Noise schedules",
        "Drift norms",
    ):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg") == 6
    assert not re.findall(r'(?:src|href)="http', text)
    log = read_interactions([run / "log.csv"])
    trained = load_checkpoint(run / "run")
    figures = metrics_of_ranks(rank_targets(trained.model, leave_one_out(log).test))
    assert f"<td>recall_at_20</td><td>{figures['recall_at_20']:.4f}</td>" in text
    ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])


def test_the_curves_are_those_of_the_run(run: Path) -> None:
    curves = training_curves(run / "run")
    updates, values = curves["validation/recall_at_20"]
    assert len(updates) == len(values) == 2
    assert updates[0] < updates[1]
    assert np.isfinite(curves["loss"][1]).all()
    assert training_curves(run) == {}


def test_another_log_or_folder_is_one_line(run: Path, tmp_path: Path) -> None:
    assert command("synthesize", tmp_path / "other.csv", "--users", 60, "--items", 30).returncode == 0
    other = command("report", run / "run", "--data", tmp_path / "other.csv")
    assert other.returncode == 2
    assert "give the same log" in other.stderr
    nowhere = command("report", run / "run", "--data", run / "log.csv", "--out", tmp_path / "no" / "r.html")
    assert nowhere.returncode == 2
    assert "Traceback" not in nowhere.stderr


def test_what_came_from_outside_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    figure = new_figure()
    figure.subplots().plot([1, 2])
    parts = [section(evil, evil, table([evil], [[evil, 0.123456]]), chart(figure, evil))]
    write_page(tmp_path / "page.html", page(evil, [(evil, evil)], parts))
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "0.1235" in text
