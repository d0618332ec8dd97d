"""The knee: the highest rate that a service holds, by doubling until it breaks, then bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loadtest.probe import Probe

LOWEST_RATE = 1.0


@dataclass(frozen=True)
class Knee:
    """Where the search ended; rates in requests/s."""

    highest_held: float | None  # None: not even the lowest rate tried
    lowest_broken: float | None  # None: everything up to the maximum rate held
    probes: tuple[Probe, ...]  # every one, in the order run


def find_knee(
    probe: Callable[[float], Probe],
    *,
    start_rate: float,
    max_rate: float,
    p99_limit_ms: float,
    resolution: float = 0.1,
    attempts: int = 2,
) -> Knee:
    """Narrow the knee down to `resolution` (relative), by `Probe.broken_by`.

    A rate is given up only after `attempts` broken probes in a row, so that one hiccup of the machine does
    not decide; the first that holds is taken.
    """
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        for _ in range(attempts):
            probes.append(probe(rate))
            if not probes[-1].broken_by(p99_limit_ms):
                return True
        return False

    held: float | None = None
    broken: float | None = None
    rate = min(start_rate, max_rate)
    while broken is None and held != max_rate:  # upwards
        if holds(rate):
            held, rate = rate, min(2 * rate, max_rate)
        else:
            broken = rate
    while (
        broken is not None and held is None and broken > LOWEST_RATE
    ):  # downwards, when the start was too high
        rate = max(broken / 2, LOWEST_RATE)
        if holds(rate):
            held = rate
        else:
            broken = rate
    while held is not None and broken is not None and broken > held * (1 + resolution):
        rate = (held + broken) / 2
        if holds(rate):
            held = rate
        else:
            broken = rate
    return Knee(highest_held=held, lowest_broken=broken, probes=tuple(probes))
