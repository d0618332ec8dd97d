"""The gates' acceptance in short: a few bad builds are refused by the gates meant for them, good nights pass.

`python -m loadtest.stress.gates` asks all of them, and fifty nights.
"""

from __future__ import annotations

import pytest

from loadtest.stress.gate_acceptance import WorldSize, necessary_gates, run_bad, run_good
from loadtest.stress.gate_scenarios import SCENARIOS, SHORT
from loadtest.stress.gates import summarise

SMALL = WorldSize(users=600, items=200)
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
def bad() -> dict[str, list[str]]:
    rows = run_bad(SHORT, size=SMALL, fresh_process=False)
    return {row["scenario"]: row["refused_by"] for row in rows}


@pytest.mark.parametrize("scenario", SHORT)
def test_a_bad_build_is_refused_by_the_gate_meant_for_it(bad, scenario):
    assert MEANT_FOR[scenario] in bad[scenario]


def test_good_nights_pass_every_gate():
    rows = run_good(worlds=1, nights=3, size=SMALL, fresh_process=False)
    assert [row["refused_by"] for row in rows] == [[], [], []]
    asked = rows[-1]["figures"]
    assert asked["questions"] >= 30
    assert asked["embedding_similarity"] > 0.9
    assert asked["recall_at_20_over_popular"] > 0


def test_the_acceptance_fails_on_one_wrong_verdict():
    refused = {"scenario": "a", "refused_by": ["x"], "passed": True}
    accepted = {"scenario": "b", "refused_by": [], "passed": False}
    good = {"scenario": "n", "refused_by": [], "passed": True, "figures": {"x": 1.0}}
    report = summarise([refused, accepted], [good, {**good, "figures": {"x": 3.0}}])
    assert (report["passed"], report["bad_refused"], report["good_accepted"]) == (False, 1, 2)
    assert report["extremes"] == {"x": [1.0, 3.0]}
    assert report["necessary"] == {"x": ["a"]}
    assert summarise([refused], [good])["passed"]


def test_twenty_bad_builds_and_more_are_kept_and_a_gate_alone_is_told():
    assert len(SCENARIOS) >= 20
    rows = [{"scenario": "a", "refused_by": ["x"]}, {"scenario": "b", "refused_by": ["x", "y"]}]
    assert necessary_gates(rows) == {"x": ["a"]}
