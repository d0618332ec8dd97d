"""Reports: what they claim, and that everything is rendered from the JSON alone."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime

import numpy as np
import pytest

from loadtest.comparison import compare
from loadtest.errors import LoadtestError
from loadtest.markdown import render
from loadtest.probe import summarise
from loadtest.report import Run, assemble, read_report, write_report
from loadtest.verdict import headline, verdict


@pytest.fixture
def report_of(samples, server):
    """A report of probes at (rate, ms of compute per sample, number of 429s)."""

    def make(*probes, **changes):
        made = []
        for rate, compute_ms, refused in probes:
            stages = np.full((20, 5), np.nan)
            stages[:, 2] = compute_ms * 4 / 1e3 * 0.75
            stages[:, 3] = compute_ms * 4 / 1e3 * 0.25
            status = np.where(np.arange(20) < refused, 429, 200).astype(np.int16)
            columns = samples(20, stages_s=stages, status=status, batch_size=np.full(20, 4, np.int32))
            made.append(summarise(columns, rate=rate, warmup_s=0, duration_s=2))
        run = Run(
            command="t2diff-loadtest run --rate 10",
            started=datetime(2026, 11, 22, 3, 15, tzinfo=UTC),
            service={"model": "t2diff", "bundle": "b1", "device": "cpu", "index": "flat", "num_items": 50},
            bundle_after="b1",
            settings=server.settings(),
            p99_limit_ms=100,
            service_on_this_machine=True,
        )
        return assemble(run, made, None) | changes

    return make


def test_compute_within_the_budget_is_said_to_be_and_hardware_is_named(report_of):
    report = report_of((10, 0.5, 0))
    text = "\n".join(verdict(report))
    assert "p99 0.500 ms against 0.68 ms: **within budget** (p99)" in text
    assert report["hardware"]["cpu"] in text
    assert f"{report['hardware']['logical_cores']} cores" in text
    assert "device: cpu" in text


def test_compute_over_the_budget_says_by_how_much(report_of):
    assert "**over budget by 5.00×** (p99)" in "\n".join(verdict(report_of((10, 3.4, 0))))
    assert "**within budget**" in "\n".join(verdict(report_of((10, 0.679, 0))))
    assert "**over budget by 1.03×**" in "\n".join(verdict(report_of((10, 0.7, 0))))


def test_without_timings_the_verdict_is_not_measured(report_of):
    assert "**not measured**" in "\n".join(verdict(report_of((10, float("nan"), 0))))


def test_the_headline_is_the_highest_rate_that_held(report_of):
    report = report_of((10, 0.5, 0), (20, 0.6, 0), (40, 0.7, 3))
    assert headline(report)["asked_rate"] == 20
    text = "\n".join(verdict(report))
    assert "Highest rate that held: **20 requests/s**" in text
    assert "40 requests/s did not" in text
    assert "3 × http 429" in text


def test_when_no_rate_held_the_report_says_so(report_of):
    assert "**No rate held**" in "\n".join(verdict(report_of((10, 0.5, 3), (20, 0.5, 3))))


def test_a_lower_rate_that_broke_is_not_hidden_by_a_higher_one_that_held(report_of):
    assert "Lower rates that did not hold all the same: 10" in "\n".join(
        verdict(report_of((10, 1, 2), (20, 1, 0)))
    )


def test_fallback_answers_and_a_changed_bundle_are_warned_about(report_of):
    report = report_of((10, 0.5, 0), bundle_after="b2")
    report["probes"][0]["routes"] = {"t2diff": 15, "popular (unknown user)": 5}
    text = "\n".join(verdict(report))
    assert "25% of the answers came from the fallback, not from the model: popular (unknown user)" in text
    assert "the bundle changed during the run, to b2" in text


def test_written_files_are_complete_and_render_again_to_the_same_text(report_of, tmp_path):
    report = report_of((10, 0.5, 0), (20, 0.6, 3))
    write_report(report, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    written = ["report.html", "report.json", "report.md", "report.png"]
    assert sorted(path.name for path in folder.iterdir()) == written
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.md").read_text()
    assert text == render(read_report(folder)) == render(report)
    for expected in ("t2diff-loadtest run --rate 10", "2026-11-22 03:15 UTC", "`b1`", "p99.9", "http 429 3"):
        assert expected in text


def test_the_report_renders_when_nothing_was_answered(report_of, tmp_path):
    write_report(report_of((10, 0.5, 20)), tmp_path)
    assert "**No rate held**" in (tmp_path / "report.md").read_text()


def test_comparing_prints_ratios_of_rates_in_both(report_of):
    before, after = report_of((10, 1.0, 0), (20, 1.0, 0)), report_of((20, 0.25, 0), (40, 0.25, 0))
    text = compare(before, after)
    assert "| highest rate held, requests/s | 20 | 40 | 2.00× |" in text
    assert "| compute per sample p99, ms, at 20/s | 1 | 0.25 | 0.25× |" in text
    assert "at 10/s" not in text
    assert "hardware differs" not in text
    elsewhere = copy.deepcopy(after)
    elsewhere["hardware"]["cpu"] = "another"
    assert "hardware differs" in compare(before, elsewhere)


@pytest.mark.parametrize("content", [None, "not json", "[]", json.dumps({"format": "t2diff-loadtest/0"})])
def test_a_missing_or_foreign_report_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(LoadtestError):
        read_report(tmp_path)
