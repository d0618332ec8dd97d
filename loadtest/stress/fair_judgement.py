"""What the stress test of two callers is held to: windows of a plan, figures of samples, checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.generator import STAGES, Samples
from loadtest.histogram import percentiles
from loadtest.stress.outcome import check

KINDS = ("alone", "at quota", "tenfold")
P99_RATIO_LIMIT = 1.2
REJECT_P99_LIMIT_MS = 10.0
_TOLERANCE = 0.02
"""Of what the quota and the bursts allow: windows are of the generator's clock, and its requests are late."""
_FLOOD_ANSWERED_LIMIT = 0.9


@dataclass(frozen=True)
class Plan:
    """rate: the modest caller's requests/s   quota: the greedy caller's, of which it sends `excess` times

    window_s: of one kind; the first guard_s are not counted   rounds_per_block: over which a p99 is taken
    flood_rate: requests/s of the caller without a rate, 0 for no flood
    beside_flood: the modest caller's then, below the third of a slow machine that is its share
    """

    rounds: int = 40
    rounds_per_block: int = 8
    window_s: float = 2.5
    guard_s: float = 0.5
    warmup_s: float = 2.0
    rate: float = 100.0
    quota: float = 20.0
    burst: int = 2
    excess: float = 10.0
    flood_rate: float = 800.0
    beside_flood: float = 2.0
    flood_s: float = 10.0
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 200
    top_k: int = 20


def window_kinds(plan: Plan) -> list[str]:
    """The kind of each window in order; every round in another one."""
    kinds: list[str] = []
    for number in range(plan.rounds):
        turn = number % len(KINDS)
        kinds += [*KINDS[turn:], *KINDS[:turn]]
    return kinds


def report(
    plan: Plan, modest: Samples, greedy: Samples, flood: tuple[Samples, Samples] | None
) -> dict[str, Any]:
    """The figures and the checks.   flood: of the modest caller and of the one without a rate"""
    latency = {kind: _seconds(modest, _counted(modest, plan, kind)) for kind in KINDS}
    by_block = {
        kind: [_p99_ms(_seconds(modest, _counted(modest, plan, kind, block))) for block in _blocks(plan)]
        for kind in KINDS
    }
    ratios = {
        kind: [p99 / alone for p99, alone in zip(by_block[kind], by_block["alone"], strict=True)]
        for kind in KINDS[1:]
    }
    refused = percentiles((greedy.ended - greedy.sent)[greedy.status == 429])
    checks = [
        check("modest caller: answers that were not 200", _num_not(modest, 200), 0),
        check("modest caller: degraded answers", int(modest.degraded.sum()), 0),
        check(
            "modest caller: p99 beside ten times the quota over p99 alone, median of blocks",
            float(np.median(ratios["tenfold"])),
            P99_RATIO_LIMIT,
        ),
        *_greedy_checks(plan, greedy),
        check("refusals: p99 in ms", None if refused is None else refused.p99_ms, REJECT_P99_LIMIT_MS),
    ]
    if flood is not None:
        answered = float((flood[1].status == 200).mean())
        checks += [
            check("flood: the modest caller's answers that were not 200", _num_not(flood[0], 200), 0),
            check("flood: share of it that was answered", answered, _FLOOD_ANSWERED_LIMIT),
        ]
    return {
        "plan": vars(plan),
        "modest": {kind: _latency(seconds) for kind, seconds in latency.items()},
        "modest_p99_ms_by_block": {kind: [round(p99, 2) for p99 in all_] for kind, all_ in by_block.items()},
        "p99_ratios_by_block": {kind: [round(ratio, 3) for ratio in all_] for kind, all_ in ratios.items()},
        "p99_ratio_of_all": {kind: _p99_ms(latency[kind]) / _p99_ms(latency["alone"]) for kind in KINDS[1:]},
        "greedy_by_status": {kind: _by_status(greedy, plan, kind) for kind in KINDS[1:]},
        "refusals_p50_ms": None if refused is None else refused.p50_ms,
        "modest_p99_ms_where": {kind: _where(modest, _counted(modest, plan, kind)) for kind in KINDS},
        "flood_by_status": None if flood is None else _statuses(flood[1].status),
        "modest_in_the_flood_by_status": None if flood is None else _statuses(flood[0].status),
        "modest_in_the_flood": None if flood is None else _latency(flood[0].ended - flood[0].intended),
        "checks": checks,
    }


def _greedy_checks(plan: Plan, greedy: Samples) -> list[dict[str, Any]]:
    """It gets its quota, no more, and is told so otherwise."""
    accepted = int((greedy.status[_sent_in(greedy, plan, "tenfold")] == 200).sum())
    allowed = window_kinds(plan).count("tenfold") * (plan.quota * plan.window_s + plan.burst)
    return [
        check("greedy caller: accepted over what it may", accepted / allowed, 1 + _TOLERANCE),
        check("greedy caller: share of what it may that it did not get", 1 - accepted / allowed, 0.25),
        check("greedy caller: answers other than 200 and 429", _num_not(greedy, 200, 429), 0),
    ]


def _blocks(plan: Plan) -> list[range]:
    """Rounds that are judged together: so near in time that the machine is the same for all kinds."""
    return [
        range(first, first + plan.rounds_per_block) for first in range(0, plan.rounds, plan.rounds_per_block)
    ]


def _sent_in(samples: Samples, plan: Plan, kind: str) -> np.ndarray:
    """-> (n,) bool: meant to be sent in a window of this kind"""
    of_window = np.array([*window_kinds(plan), ""]) == kind
    return of_window[np.where(samples.intended < plan.warmup_s, -1, _window_of(samples, plan))]


def _counted(samples: Samples, plan: Plan, kind: str, rounds: range | None = None) -> np.ndarray:
    """The same without the windows' beginnings; perhaps of some rounds only."""
    within = (samples.intended - plan.warmup_s) % plan.window_s >= plan.guard_s
    chosen = _sent_in(samples, plan, kind) & within
    if rounds is not None:
        chosen &= np.isin(_window_of(samples, plan) // len(KINDS), rounds)
    return chosen


def _window_of(samples: Samples, plan: Plan) -> np.ndarray:
    """-> (n,) the number of the window, the last one's plus 1 for what is beyond it"""
    window = np.floor((samples.intended - plan.warmup_s) / plan.window_s).astype(np.int64)
    return np.minimum(window, len(window_kinds(plan)))


def _seconds(samples: Samples, chosen: np.ndarray) -> np.ndarray:
    return (samples.ended - samples.intended)[chosen]


def _where(samples: Samples, chosen: np.ndarray) -> dict[str, float]:
    """p99s: how late the generator sent, and how long the service says that it took."""
    lag_s, total_s = samples.sent - samples.intended, samples.stages_s[:, STAGES.index("total")]
    return {"generator_lag": _p99_ms(lag_s[chosen]), "service": _p99_ms(total_s[chosen])}


def _p99_ms(seconds: np.ndarray) -> float:
    found = percentiles(seconds)
    return float("nan") if found is None else found.p99_ms


def _latency(seconds: np.ndarray) -> dict[str, Any]:
    found = percentiles(seconds)
    names = ("count", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    return {} if found is None else {name: getattr(found, name) for name in names}


def _num_not(samples: Samples, *statuses: int) -> int:
    return int((~np.isin(samples.status, statuses)).sum())


def _by_status(samples: Samples, plan: Plan, kind: str) -> dict[str, int]:
    return _statuses(samples.status[_sent_in(samples, plan, kind)])


def _statuses(statuses: Sequence[int] | np.ndarray) -> dict[str, int]:
    found, counts = np.unique(np.asarray(statuses), return_counts=True)
    return {str(status): int(count) for status, count in zip(found.tolist(), counts.tolist(), strict=True)}
