"""The stress test of two callers in short: who was refused and who was not; nothing here is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest.generator import STAGES, Samples
from loadtest.stress.fair import run
from loadtest.stress.fair_judgement import KINDS, Plan, report, window_kinds
from loadtest.stress.outcome import Options, passed


def test_ten_times_its_quota_costs_the_other_caller_nothing() -> None:
    figures = run(Options(short=True))
    checks = {one["name"]: one["passed"] for one in figures["checks"] if "p99" not in one["name"]}
    checks.pop("greedy caller: share of what it may that it did not get")  # a busy machine sends late
    assert len(checks) == 4
    assert all(checks.values()), figures
    assert figures["greedy_by_status"]["tenfold"]["429"] > 3 * figures["greedy_by_status"]["tenfold"]["200"]
    assert figures["modest"]["tenfold"]["count"] >= 5


PLAN = Plan(rounds=3, rounds_per_block=1, window_s=10.0, guard_s=1.0, warmup_s=0.0, quota=1.0, burst=1)


def sampled(latency_s: float, status: int = 200) -> Samples:
    """Ten requests a second in nine windows of ten seconds."""
    n = 900
    sent = np.arange(n) / 10
    return Samples(
        intended=sent,
        sent=sent,
        ended=sent + latency_s,
        status=np.full(n, status, np.int16),
        degraded=np.zeros(n, bool),
        short=np.zeros(n, bool),
        stages_s=np.full((n, len(STAGES)), np.nan),
        batch_size=np.ones(n, np.int32),
        route=np.zeros(n, np.int16),
        bundle=np.zeros(n, np.int16),
        names=("t2diff",),
        waited_for_connection=0,
        cpu_share=0.1,
    )


def in_windows(kind: str) -> np.ndarray:
    """-> (900,) bool"""
    return np.repeat([each == kind for each in window_kinds(PLAN)], 100)


def greedily(accepted: int = 11, otherwise: int = 429) -> Samples:
    """Of 100 requests in a window, so many accepted; of the quota one a second and a burst of one."""
    status = np.tile(np.where(np.arange(100) < accepted, 200, otherwise), 9).astype(np.int16)
    return replace(sampled(0.001), status=status)


def slower(samples: Samples, kind: str, by_s: float) -> Samples:
    return replace(samples, ended=samples.ended + by_s * in_windows(kind))


def refused_once(samples: Samples) -> Samples:
    return replace(samples, status=np.where(np.arange(900) == 450, 429, samples.status).astype(np.int16))


def test_windows_of_every_kind_come_first_and_last_in_turn() -> None:
    assert window_kinds(PLAN)[::3] == list(KINDS)
    assert sorted(window_kinds(PLAN)) == sorted(KINDS * 3)


def test_the_judge_accepts_what_is_fair() -> None:
    figures = report(PLAN, sampled(0.010), greedily(), None)
    assert passed(figures["checks"]), figures
    assert figures["modest"]["alone"]["count"] == 3 * 90, "without the windows' beginnings"
    assert figures["greedy_by_status"]["tenfold"] == {"200": 33, "429": 267}


MODEST = sampled(0.010)


@pytest.mark.parametrize(
    ("modest", "greedy", "broken"),
    [
        (slower(MODEST, "tenfold", 0.003), greedily(), "modest caller: p99 beside"),
        (refused_once(MODEST), greedily(), "modest caller: answers that were not 200"),
        (replace(MODEST, degraded=MODEST.intended > 89), greedily(), "modest caller: degraded"),
        (MODEST, greedily(12), "greedy caller: accepted"),
        (MODEST, greedily(7), "greedy caller: share of what it may"),
        (MODEST, greedily(otherwise=503), "greedy caller: answers other"),
        (MODEST, replace(greedily(), ended=greedily().sent + 0.1), "refusals: p99"),
    ],
)
def test_the_judge_sees_what_is_not(modest: Samples, greedy: Samples, broken: str) -> None:
    checks: list[dict[str, Any]] = report(PLAN, modest, greedy, None)["checks"]
    failed = [one["name"] for one in checks if not one["passed"]]
    assert len([name for name in failed if name.startswith(broken)]) == 1, failed


def test_a_machine_that_is_slow_for_a_block_is_slow_for_every_kind() -> None:
    modest = replace(MODEST, ended=MODEST.ended + 0.5 * (MODEST.intended < 30))
    assert report(PLAN, modest, greedily(), None)["p99_ratios_by_block"]["tenfold"] == [1.0, 1.0, 1.0]


def test_a_flood_may_refuse_itself_and_nobody_else() -> None:
    flood = greedily(50)
    assert passed(report(PLAN, MODEST, greedily(), (MODEST, flood))["checks"])
    assert not passed(report(PLAN, MODEST, greedily(), (refused_once(MODEST), flood))["checks"])
    assert not passed(report(PLAN, MODEST, greedily(), (MODEST, greedily(100)))["checks"]), "it was no flood"
