"""`t2diff-loadtest knee`: how much each tower engine lets one core serve, and what the service adds to it.

All services run from the start to the end; an idle one costs nothing. First each one's knee, by the search of
`knee.py`; then, in turns, the knee again around the first, and the steady rates at shares of it. So what is
compared was measured minutes apart at most, and a drift of the machine meets all alike.

Overhead per request = (processor time of the service's process - that of the device thread in tower and in
search) / requests, over a whole probe, warm-up included. Redis is a process of its own and counted apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.generator import STAGES
from loadtest.knee import find_knee
from loadtest.probe import Probe, ProbeSettings, draw_up, run_probe
from loadtest.served import CpuUsed, Served

SHARES = (25, 50, 70, 90)
"""Steady rates, in percent of the knee."""
VARIANTS = {
    "eager": ["--tower-engine", "eager"],
    "fused": ["--tower-engine", "fused"],
    "ddim10": ["--tower-engine", "fused", "--num-inference-steps", "10", "--sampler", "ddim"],
}
FLOOR = "floor"
_RESOLUTION = 0.1
_STEP = 1.06  # between rates when the knee is looked for again around a known one
_MAX_STEPS = 4

Figures = dict[str, float | int | str | bool | None]


@dataclass(frozen=True)
class Measured:
    """One probe of one service.   share: percent of its knee, None while the knee was looked for"""

    name: str
    share: int | None
    held: bool
    num_sent: int
    cpu: CpuUsed  # over the whole probe, in seconds
    probe: Probe

    def microseconds(self, seconds: float) -> float:
        """Of processor time, per request."""
        return seconds * 1e6 / self.num_sent


class KneeBench:
    """Takes the measurements and keeps every one, in the order taken."""

    def __init__(
        self,
        settings: ProbeSettings,
        *,
        p99_limit_ms: float,
        max_rate: float,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._p99_limit_ms = p99_limit_ms
        self._max_rate = max_rate
        self._say = say
        self.measured: list[Measured] = []

    def run(self, services: Sequence[Served], *, start_rate: float, rounds: int) -> dict[str, float]:
        """The knee of each service, in requests/s; then `measured` holds the steady rates too.

        The floor is asked at the rates of `fused`, or of the last service, for what it costs is the question.
        Raises LoadtestError when a service holds no rate at all.
        """
        recalling = [served for served in services if served.name != FLOOR]
        knees: dict[str, list[float]] = {}
        for served in services:
            knees[served.name] = [self._first_knee(served, start_rate)]
        for _ in range(rounds - 1):
            for served in recalling:
                knees[served.name].append(self._knee_again(served, knees[served.name][0]))
        found = {name: statistics.median(rates) for name, rates in knees.items()}
        floor_like = "fused" if "fused" in found else recalling[-1].name
        for share in SHARES:
            for served in services:
                knee = found[floor_like if served.name == FLOOR else served.name]
                self._measure(served, knee * share / 100, share)
        return found

    def _first_knee(self, served: Served, start_rate: float) -> float:
        found = find_knee(
            lambda rate: self._measure(served, rate).probe,
            start_rate=start_rate,
            max_rate=self._max_rate,
            p99_limit_ms=self._p99_limit_ms,
            resolution=_RESOLUTION,
        )
        if found.highest_held is None:
            raise LoadtestError(
                f"service {served.name!r} held no rate, not even {found.lowest_broken:g}/s: "
                "free the machine, or raise --p99-limit-ms"
            )
        return found.highest_held

    def _knee_again(self, served: Served, known: float) -> float:
        """Small steps up from a known knee while they hold, else down until one does."""
        rate = known
        if self._measure(served, rate).held:
            for _ in range(_MAX_STEPS):
                if rate * _STEP > self._max_rate or not self._measure(served, rate * _STEP).held:
                    break
                rate *= _STEP
            return rate
        for _ in range(_MAX_STEPS):
            rate /= _STEP
            if self._measure(served, rate).held:
                break
        return rate

    def _measure(self, served: Served, rate: float, share: int | None = None) -> Measured:
        settings = replace(self._settings, url=served.url)
        with served.measuring_cpu() as used:
            probe = run_probe(settings, rate)
        measured = Measured(
            name=served.name,
            share=share,
            held=not probe.broken_by(self._p99_limit_ms),
            num_sent=len(draw_up(settings, rate).offsets_s),
            cpu=used[0],
            probe=probe,
        )
        self.measured.append(measured)
        self._say(_line(measured, self._p99_limit_ms))
        return measured


def knee_figures(knees: dict[str, float], measured: Sequence[Measured]) -> Figures:
    """Flat: knee_rps_NAME, NAME_p99_ms_at_70 and so on, and the ratios that are asked for by name."""
    figures: Figures = {f"knee_rps_{name}": rate for name, rate in knees.items()}
    for one in measured:
        if one.share is not None:
            figures |= {f"{one.name}_{key}_at_{one.share}": value for key, value in _of_probe(one).items()}
    for name, rate in knees.items():
        at_knee = [
            one.microseconds(one.cpu.overhead)
            for one in measured
            if one.name == name and one.held and abs(one.probe.asked_rate / rate - 1) < _RESOLUTION
        ]
        figures[f"{name}_overhead_us_at_knee"] = statistics.median(at_knee) if at_knee else None
        figures[f"{name}_p99_over_p50_at_70"] = _ratio(
            figures, f"{name}_p99_ms_at_70", f"{name}_p50_ms_at_70"
        )
    figures["knee_fused_over_eager"] = _ratio(figures, "knee_rps_fused", "knee_rps_eager")
    figures["ddim10_over_ddpm50_rps"] = _ratio(figures, "knee_rps_ddim10", "knee_rps_fused")
    served = "fused" if "fused" in knees else next((name for name in knees if name != FLOOR), FLOOR)
    figures["overhead_us_per_request_at_knee"] = figures[f"{served}_overhead_us_at_knee"]
    figures["p99_over_p50_at_70"] = figures[f"{served}_p99_over_p50_at_70"]
    figures["floor_us_per_request"] = figures.get(f"{FLOOR}_cpu_us_at_70")
    return figures


def _of_probe(one: Measured) -> Figures:
    probe = one.probe
    latency = asdict(probe.latency) if probe.latency else {}
    figures: Figures = {name: latency.get(name) for name in ("p50_ms", "p95_ms", "p99_ms", "p999_ms")}
    figures |= {
        "rps": probe.asked_rate,
        "held": one.held,
        "cpu_us": one.microseconds(one.cpu.process),
        "overhead_us": one.microseconds(one.cpu.overhead),
        "redis_us": one.microseconds(one.cpu.redis),
        "generator_late": probe.generator_late,
    }
    for stage in STAGES:
        found = probe.stages[stage]
        figures[f"{stage}_p50_ms"] = found.p50_ms if found else None
    total = sum(count for _, count in probe.batch_sizes)
    if total:
        figures["batch_mean"] = sum(size * count for size, count in probe.batch_sizes) / total
    return figures


def _ratio(figures: Figures, above: str, below: str) -> float | None:
    one, other = figures.get(above), figures.get(below)
    return float(one) / float(other) if one and other else None


def _line(one: Measured, p99_limit_ms: float) -> str:
    probe = one.probe
    p99 = f"p99 {probe.latency.p99_ms:.1f} ms" if probe.latency else "no latency"
    outcome = "held" if one.held else f"did not hold: {', '.join(probe.broken_by(p99_limit_ms))}"
    overhead = f"{one.microseconds(one.cpu.overhead):.0f} us outside tower and search"
    late = ", generator late" if probe.generator_late else ""
    return f"{one.name} at {probe.asked_rate:.0f}/s: {outcome}, {p99}, {overhead}{late}"


def detail(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every probe in full, as plain JSON types."""
    return [asdict(one) | {"cpu": one.cpu._asdict()} for one in measured]
