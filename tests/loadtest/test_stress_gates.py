"""The gates' acceptance in short: a few bad builds are refused by the gates meant for them, good nights pass.

`make stress ONLY=gates` asks all of them, and fifty nights.
"""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.stress.gate_acceptance import necessary_gates
from loadtest.stress.gate_scenarios import SCENARIOS, SHORT
from loadtest.stress.gates import run, summarise
from loadtest.stress.outcome import Options, passed

MEANT_FOR = {
    "one-user day": "newest_day_users_ratio",
    "clock a year ahead": "log_age_hours",
    "shuffled embeddings": "embedding_similarity",
    "scaled norms": "embedding_norm_ratio",
    "truncated vocabulary": "items_kept_share",
    "untrained weights": "recall_at_20_drop",
    "index of other embeddings": "ann_overlap_at_100",
}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return run(Options(short=True))


@pytest.mark.parametrize("scenario", SHORT)
def test_a_bad_build_is_refused_by_the_gate_meant_for_it(report, scenario):
    refused_by = {row["scenario"]: row["refused_by"] for row in report["bad"]}
    assert MEANT_FOR[scenario] in refused_by[scenario]


def test_good_nights_pass_every_gate(report):
    assert [row["refused_by"] for row in report["good"]] == [[], [], []]
    assert report["extremes"]["questions"][0] >= 30
    assert report["extremes"]["embedding_similarity"][0] > 0.9
    assert report["extremes"]["recall_at_20_over_popular"][0] > 0
    assert passed(report["checks"])


def test_the_acceptance_fails_on_one_wrong_verdict():
    refused = {"scenario": "a", "refused_by": ["x"], "passed": True}
    accepted = {"scenario": "b", "refused_by": [], "passed": False}
    good = {"scenario": "n", "refused_by": [], "passed": True, "figures": {"x": 1.0}}
    report = summarise([refused, accepted], [good, {**good, "figures": {"x": 3.0}}])
    assert not passed(report["checks"])
    assert not passed(summarise([refused], [{**good, "passed": False}])["checks"])
    assert passed(summarise([refused], [good])["checks"])
    assert report["extremes"] == {"x": [1.0, 3.0]}
    assert report["necessary"] == {"x": ["a"]}


def test_twenty_bad_builds_and_more_are_kept_and_a_gate_alone_is_told():
    assert len(SCENARIOS) >= 20
    rows = [{"scenario": "a", "refused_by": ["x"]}, {"scenario": "b", "refused_by": ["x", "y"]}]
    assert necessary_gates(rows) == {"x": ["a"]}
