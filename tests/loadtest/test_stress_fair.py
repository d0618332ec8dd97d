"""The stress test of two callers in short: who was refused and who was not; nothing here is timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadtest.generator import STAGES, Samples
from loadtest.stress.fair import SHORT, Plan, Stretch, p99_ratios, report, run
from loadtest.stress.outcome import Options, passed

TIMED = ("p99",)


def test_ten_times_its_quota_costs_the_other_caller_nothing() -> None:
    figures = run(Options(short=True))
    for one in figures["checks"]:
        assert one["passed"] or any(word in one["name"] for word in TIMED), one
    by_status = figures["greedy_by_status"]["tenfold"]
    assert set(by_status) == {"200", "429"}
    assert by_status["429"] > 5 * by_status["200"]
    assert figures["modest"]["tenfold"]["count"] > 20


def samples(latencies_s: list[float], statuses: list[int] | None = None) -> Samples:
    n = len(latencies_s)
    sent = np.arange(n) / 10
    return Samples(
        intended=sent,
        sent=sent,
        ended=sent + np.asarray(latencies_s),
        status=np.array(statuses or [200] * n, np.int16),
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


PLAN = Plan(rounds=1, warmup_s=0.0, quota=1.0, excess=10.0)
QUIET = [0.010] * 100
GREEDY = samples([0.001] * 100, [200] * 11 + [429] * 89)
"""Ten seconds at one request a second, and a burst of one."""


def judged(modest: Samples, greedy: Samples) -> dict[str, Any]:
    alone = Stretch(samples(QUIET), None)
    return report(PLAN, {"alone": [alone], "tenfold": [Stretch(modest, greedy)]}, None)


def test_the_judge_accepts_what_is_fair() -> None:
    assert passed(judged(samples(QUIET), GREEDY)["checks"])


@pytest.mark.parametrize(
    ("modest", "greedy", "broken"),
    [
        (samples([0.013] * 100), GREEDY, "modest caller: p99 beside"),
        (samples(QUIET, [429] + [200] * 99), GREEDY, "modest caller: answers that were not 200"),
        (samples(QUIET), samples([0.001] * 100), "greedy caller: accepted"),
        (samples(QUIET), samples([0.001] * 100, [429] * 100), "greedy caller: part of what it may"),
        (samples(QUIET), samples([0.001] * 100, [200] * 11 + [503] * 89), "greedy caller: answers other"),
        (samples(QUIET), samples([0.100] * 100, [200] * 11 + [429] * 89), "refusals: p99"),
    ],
)
def test_the_judge_sees_what_is_not(modest: Samples, greedy: Samples, broken: str) -> None:
    failed = [one["name"] for one in judged(modest, greedy)["checks"] if not one["passed"]]
    assert any(name.startswith(broken) for name in failed), failed


def test_ratios_are_taken_within_a_round() -> None:
    """The machine was slow in the second round; both kinds were, and nobody was unfair."""
    slow = [0.1] * 100
    modest = {"alone": [samples(QUIET), samples(slow)], "tenfold": [samples(QUIET), samples(slow)]}
    assert p99_ratios(modest, PLAN) == {"tenfold": [1.0, 1.0]}
    assert SHORT.flood_rate == 0
