"""Every bad build refused, fifty good nights accepted: what the gates are held to.

`python -m loadtest.stress.run gates` writes the table {scenario, refused_by, passed} of both.
"""

from __future__ import annotations

from typing import Any

import torch

from index_builder import ann
from loadtest.stress.gate_acceptance import Row, WorldSize, necessary_gates, run_bad, run_good
from loadtest.stress.gate_scenarios import SCENARIOS, SHORT
from loadtest.stress.outcome import Options, check

NAME = "gates"

_WORLDS, _NIGHTS, _NIGHTS_SHORT = 5, 10, 3
_SMALL = WorldSize(users=600, items=200)


def run(options: Options) -> dict[str, Any]:
    """Figures: both tables; the short version makes fewer builds and loads none in a fresh process."""
    torch.set_num_threads(1)
    ann.set_num_threads(1)

    def say(row: Row, wrong: str) -> None:
        options.say(f"{row['scenario']}: {', '.join(row['refused_by']) or wrong}")

    size = _SMALL if options.short else WorldSize()
    bad = run_bad(
        SHORT if options.short else tuple(SCENARIOS),
        size=size,
        fresh_process=not options.short,
        report=lambda row: say(row, "NOT REFUSED"),
    )
    good = run_good(
        worlds=1 if options.short else _WORLDS,
        nights=_NIGHTS_SHORT if options.short else _NIGHTS,
        size=size,
        fresh_process=not options.short,
        report=lambda row: say(row, "accepted"),
    )
    return summarise(bad, good)


def summarise(bad: list[Row], good: list[Row]) -> dict[str, Any]:
    """The figures and what they are held to.

    necessary: gates without which a bad build would be served, with those builds
    extremes: of each figure the least and the largest over all good nights
    """
    figures: dict[str, list[float]] = {}
    for row in good:
        for name, value in row["figures"].items():
            figures.setdefault(name, []).append(value)
    return {
        "checks": [
            check("bad_builds_accepted", sum(not row["passed"] for row in bad), 0),
            check("good_nights_refused", sum(not row["passed"] for row in good), 0),
        ],
        "bad_builds": len(bad),
        "good_nights": len(good),
        "necessary": necessary_gates(bad),
        "extremes": {name: [min(values), max(values)] for name, values in figures.items()},
        "bad": bad,
        "good": [{key: row[key] for key in ("scenario", "refused_by", "passed")} for row in good],
    }
