"""The Redis stress test in short, and that its judge can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loadtest.generator import TIMEOUT, Samples
from loadtest.stress.outcome import Options
from loadtest.stress.redis_faults import SHORT, fault_checks, fault_figures, stretch_figures


def test_every_request_is_answered_while_redis_is_stopped() -> None:
    plan = replace(SHORT, faults=("stopped",), quiet_s=0.5)
    figures = fault_figures(plan, Options(short=True))
    timed = ("seconds until", "past the deadline", "fallbacks")
    failed = [
        one
        for one in figures["checks"]
        if not one["passed"] and not any(word in one["name"] for word in timed)
    ]
    assert not failed, figures
    assert set(figures["faults"]) == {"stopped"}


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, None),
        ({"status": {12: 503}}, "not 200"),
        ({"status": {12: 503}}, "5xx"),
        ({"status": {30: TIMEOUT}}, "not 200"),
        ({"ended": {12: 2.3}}, "past the deadline"),
        ({"ended": {12: np.nan}}, "past the deadline"),
        ({"route": {n: 1 for n in range(20, 31)}}, "until it was back"),
        ({"route": {n: 1 for n in range(20, 40)}}, "until it was back"),
        ({"route": {n: 1 for n in range(20, 25)}}, None),
        ({"route": {37: 1}}, "from then on"),
        ({"route": {37: 2}}, None),
        ({"degraded": {n: False for n in range(10, 20)}}, "without an effect"),
        ({"connections": 51}, "connections asked for"),
    ],
)
def test_the_judge_sees_what_went_wrong(
    samples: Callable[..., Samples], change: dict[str, Any], broken: str | None
) -> None:
    """40 requests at 10/s, a fault from 1 s to 2 s that degrades what is asked meanwhile."""
    degraded = np.zeros(40, bool)
    degraded[10:20] = True
    ok = samples(40)
    names = ("t2diff", "popular (store_timeout)", "popular (deadline)")
    columns: dict[str, Any] = {name: getattr(ok, name) for name in ("status", "ended", "route")}
    columns |= {"degraded": degraded, "names": names}
    for name, values in change.items():
        for number, value in values.items() if isinstance(values, dict) else ():
            columns[name][number] = value
    figures = stretch_figures(samples(40, **columns), 0.95, 1.95, 1.0)
    figures["connections"] = change.get("connections", 7)
    failed = [one["name"] for one in fault_checks("made up", figures) if not one["passed"]]
    if broken is None:
        assert failed == []
    else:
        assert any(broken in name for name in failed), failed
