"""Overload: five and ten times the knee for a minute each, and what is left of the service meanwhile.

The knee is the highest rate of which the service answers 97 % well within the deadline; the peak is the most
good answers a second at any rate up to and around it. A good answer is a 200 of the model, not degraded,
within the deadline from its intended send. A machine that others share is not the same a minute later: so the
rate of the peak is asked again right before and right after each overload, and the goodput of the overload is
held against the mean of these two. The service has one processor, the generator another, where there are two.
Whatever else runs on them takes from all rates; so good answers for each second of the service's own
processor time are told beside those for each second.
"""

from __future__ import annotations

import re
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from loadtest.generator import user_id
from loadtest.seeding import seed_users, sequences_from_items
from loadtest.served import Served
from loadtest.stress.flood import Flood, Flooded, run_flood
from loadtest.stress.ground import generator_cpu, service_on
from loadtest.stress.outcome import Options, check
from loadtest.stress.own_process import EVERY_S
from loadtest.stress.raw_connection import recall_bytes

NAME = "overload"
GOODPUT_LOST_LIMIT = 0.10
REJECT_LIMIT_MS = 10.0
RECOVERY_LIMIT_S = 2.0
RSS_GROWTH_LIMIT = 0.25
"""Of the resident memory before the overload: buffers of all connections are there, and no more."""
_HELD = 0.97
_STEP = 1.2


@dataclass(frozen=True)
class Plan:
    """multiples: of the knee   around: multiples at which the peak is looked for as well

    ramp_s: at each rate of the search   normal_s: at half the knee, before and after an overload
    peak_s: at the rate of the peak, before and after that
    """

    multiples: tuple[float, ...] = (5.0, 10.0)
    around: tuple[float, ...] = (1.1, 1.25, 1.5)
    overload_s: float = 60.0
    ramp_s: float = 5.0
    normal_s: float = 10.0
    peak_s: float = 10.0
    first_rate: float = 200.0
    deadline_ms: int = 1000
    num_connections: int = 1000
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 500
    top_k: int = 100
    service: tuple[str, ...] = ()


SHORT = Plan(
    multiples=(5.0,),
    around=(1.25,),
    overload_s=2.0,
    ramp_s=1.0,
    normal_s=2.0,
    peak_s=1.0,
    first_rate=100.0,
    num_connections=600,
    num_items=300,
    dim=16,
    num_users=50,
    top_k=20,
)


def run(options: Options) -> dict[str, Any]:
    """5 and 10 times the knee for 60 s each; short: 5 times for 2 s."""
    return overload_figures(SHORT if options.short else Plan(), options)


def overload_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    service = ["--deadline-ms", str(plan.deadline_ms), *plan.service]
    with (
        tempfile.TemporaryDirectory(prefix="t2diff-overload-") as folder,
        service_on(NAME, Path(folder), num_items=plan.num_items, dim=plan.dim, options=service) as (
            served,
            _,
        ),
    ):
        items = [f"item-{number}" for number in range(plan.num_items)]
        histories = sequences_from_items(items, num_users=plan.num_users, events_per_user=50, seed=0)
        seed_users(served.url, histories, lambda done: None)
        return _Stress(plan, options, served).figures()


class _Stress:
    def __init__(self, plan: Plan, options: Options, served: Served) -> None:
        self.plan, self.options, self.served = plan, options, served
        self.requests = [
            recall_bytes(served.url, b'{"user_id":"%b","top_k":%d}' % (user_id(n).encode(), plan.top_k))
            for n in range(1, plan.num_users + 1)
        ]
        self.rates: list[dict[str, float]] = []

    def figures(self) -> dict[str, Any]:
        self._goodput(self.plan.first_rate / 2)  # warm
        self.rates.clear()
        knee = self._knee()
        for multiple in self.plan.around:
            self._goodput(multiple * knee)
        peak = max(self.rates, key=lambda one: one["goodput"])
        self.options.say(f"knee {knee:.0f}/s, peak {peak['goodput']:.0f} good answers/s")
        overloads = [self._overload(knee, peak["rate"], multiple) for multiple in self.plan.multiples]
        return {
            "plan": vars(self.plan),
            "knee_rate": round(knee, 1),
            "peak_goodput": peak["goodput"],
            "rates": self.rates,
            "overloads": overloads,
            "checks": [one for overload in overloads for one in checks_of(overload, self.plan)],
        }

    def _knee(self) -> float:
        rate, held = self.plan.first_rate, self.plan.first_rate / 2
        broken = 0
        while broken < 2:  # one hiccup of the machine does not decide
            if self._goodput(rate) >= _HELD * rate:
                held, broken = rate, 0
                rate *= _STEP
            else:
                broken += 1
        return held

    def _goodput(self, rate: float) -> float:
        """Good answers a second at a steady rate, the first fifth left out."""
        plan = self.plan
        with self.served.measuring_cpu() as cpu:
            flooded = self._flood([(rate, plan.ramp_s)])
        counted = flooded.intended >= plan.ramp_s / 5
        good = _good(flooded, plan)
        goodput = good[counted].sum() / (0.8 * plan.ramp_s)
        by_cpu = round(float(good.sum() / cpu[0].process), 1)
        self.rates.append({"rate": round(rate, 1), "goodput": round(float(goodput), 1), "by_cpu": by_cpu})
        self.options.say(f"{rate:.0f}/s: {goodput:.0f} good, {by_cpu:.0f} a processor second")
        return float(goodput)

    def _flood(self, phases: Sequence[tuple[float, float]], meanwhile: Any = lambda: None) -> Flooded:
        """phases: (requests/s, seconds) one after another"""
        ends = np.cumsum([seconds for _, seconds in phases])
        offsets = [
            end - seconds + np.arange(int(rate * seconds)) / rate
            for (rate, seconds), end in zip(phases, ends, strict=True)
        ]
        flood = Flood(
            self.served.url,
            np.concatenate(offsets),
            self.requests,
            self.plan.num_connections,
            patience_s=2 * self.plan.deadline_ms / 1000,
            cpu=generator_cpu(),
        )
        return run_flood(flood, meanwhile)

    def _overload(self, knee: float, peak_rate: float, multiple: float) -> dict[str, Any]:
        plan = self.plan
        process = psutil.Process(self.served.process.pid)
        rss: list[int] = []
        phases = [
            (peak_rate, plan.peak_s),
            (knee / 2, plan.normal_s),
            (multiple * knee, plan.overload_s),
            (knee / 2, plan.normal_s),
            (peak_rate, plan.peak_s),
        ]
        cpu: list[float] = []
        began = fallbacks(self.served)

        def note() -> None:
            rss.append(process.memory_info().rss)
            cpu.append(sum(process.cpu_times()[:2]))

        flooded = self._flood(phases, note)
        begin = plan.peak_s + plan.normal_s
        end = begin + plan.overload_s
        normal = flooded.intended >= plan.peak_s
        normal &= flooded.intended < end + plan.normal_s
        during = (flooded.intended >= begin) & (flooded.intended < end)
        good = _good(flooded, plan)
        accepted, refused = during & (flooded.status == 200), during & (flooded.status == 429)
        goodput = good[during].sum() / plan.overload_s
        at_peak = (flooded.intended < plan.peak_s) | (flooded.intended >= end + plan.normal_s)
        peak = float(good[at_peak].sum() / (2 * plan.peak_s))
        before = max(rss[: max(1, int(begin / EVERY_S))])
        outcomes, counts = np.unique(flooded.status[during], return_counts=True)
        late = flooded.intended[normal & (flooded.intended >= end) & ~good]
        figures = {
            "multiple": multiple,
            "offered_rate": round(multiple * knee, 1),
            "goodput": round(float(goodput), 1),
            "peak_beside": round(peak, 1),
            "goodput_share_of_peak": float(goodput / peak) if peak else 0.0,
            "num_by_status": dict(zip(map(str, outcomes.tolist()), counts.tolist(), strict=True)),
            "num_degraded": int((accepted & ~flooded.good).sum()),
            "fallbacks": {
                k: n - began.get(k, 0) for k, n in fallbacks(self.served).items() if n > began.get(k, 0)
            },
            "goodput_by_cpu": round(
                float(good[during].sum() / (cpu[round(end / EVERY_S)] - cpu[round(begin / EVERY_S)])), 1
            ),
            "accepted_ms": _milliseconds(flooded, accepted),
            "refused_since_sent_ms": _percentiles((flooded.ended - flooded.sent)[refused] * 1000),
            "normal_before_ms": _milliseconds(flooded, normal & (flooded.intended < begin)),
            "normal_after_ms": _milliseconds(flooded, normal & (flooded.intended >= end + RECOVERY_LIMIT_S)),
            "recovered_after_s": float(late.max() - end) if len(late) else 0.0,
            "rss_mib_before": round(before / 2**20, 1),
            "rss_mib_max": round(max(rss) / 2**20, 1),
        }
        self.options.say(f"{multiple:g} times the knee: {figures}")
        return figures


def fallbacks(served: Served) -> dict[str, int]:
    """By reason, so far."""
    with urllib.request.urlopen(f"{served.admin_url}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.findall(r'^t2diff_fallbacks_total{degraded="true",reason="(\w+)"} (\S+)', text, re.MULTILINE)
    return {reason: int(float(number)) for reason, number in found}


def checks_of(overload: dict[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """What the figures of one overload are held to."""
    at = f"at {overload['multiple']:g} times the knee: "
    accepted, refused = overload["accepted_ms"], overload["refused_since_sent_ms"]
    growth = overload["rss_mib_max"] / overload["rss_mib_before"] - 1
    wrong = sum(n for status, n in overload["num_by_status"].items() if status not in ("200", "429", "0"))
    return [
        check(at + "goodput lost, of the peak", 1 - overload["goodput_share_of_peak"], GOODPUT_LOST_LIMIT),
        check(at + "refusals, p99 in ms from the send", refused and refused["p99"], REJECT_LIMIT_MS),
        check(at + "accepted, p99 in ms", accepted and accepted["p99"], plan.deadline_ms),
        check(at + "neither answered nor refused", wrong, 0),
        check(at + "growth of resident memory", growth, RSS_GROWTH_LIMIT),
        check(at + "seconds until all is normal again", overload["recovered_after_s"], RECOVERY_LIMIT_S),
    ]


def _good(flooded: Flooded, plan: Plan) -> np.ndarray:
    """(n,) bool"""
    return flooded.good & (flooded.latency_ms <= plan.deadline_ms)


def _milliseconds(flooded: Flooded, of: np.ndarray) -> dict[str, float] | None:
    return _percentiles(flooded.latency_ms[of & (flooded.status == 200)] if of.any() else np.empty(0))


def _percentiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    p50, p99, most = np.percentile(values, [50, 99, 100])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(most), 3)}
