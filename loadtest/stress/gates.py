"""`python -m loadtest.stress.gates`: every bad build refused, fifty good nights accepted; a table and JSON.

Exit status 1 when a bad build was accepted or a good night refused.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from index_builder import ann
from loadtest.stress.gate_acceptance import Row, necessary_gates, run_bad, run_good
from loadtest.target import describe_hardware, git_commit

RESULT = Path("loadtest/results/stress-gates.json")


def gates(
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path(
        "loadtest/results/stress-gates.json"
    ),
    worlds: Annotated[int, typer.Option(min=1, help="Made-up worlds of good nights.")] = 5,
    nights: Annotated[int, typer.Option(min=1, help="Good nights in each, one after the other.")] = 10,
) -> None:
    """Ask the gates about every bad build and about worlds × nights good ones."""
    torch.set_num_threads(1)
    ann.set_num_threads(1)
    began = time.monotonic()
    bad = run_bad(report=lambda row: _show(row, expected="refused"))
    good = run_good(worlds=worlds, nights=nights, report=lambda row: _show(row, expected="accepted"))
    report = summarise(bad, good) | {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began, 1),
        "hardware": describe_hardware(device=None),
        "git_commit": git_commit(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"bad refused    {report['bad_refused']} of {len(bad)}")
    print(f"good accepted  {report['good_accepted']} of {len(good)}")
    print(f"written        {out}")
    if not report["passed"]:
        raise typer.Exit(1)


def summarise(bad: list[Row], good: list[Row]) -> dict[str, Any]:
    """The acceptance: counts, whether it passed, both tables, and how near good nights came to the limits.

    necessary: gates without which a bad build would be served, with those builds
    extremes: of each figure the least and the largest over all good nights
    """
    figures: dict[str, list[float]] = {}
    for row in good:
        for name, value in row["figures"].items():
            figures.setdefault(name, []).append(value)
    return {
        "passed": all(row["passed"] for row in [*bad, *good]),
        "bad_refused": sum(row["passed"] for row in bad),
        "good_accepted": sum(row["passed"] for row in good),
        "necessary": necessary_gates(bad),
        "extremes": {name: [min(values), max(values)] for name, values in figures.items()},
        "bad": bad,
        "good": [{key: row[key] for key in ("scenario", "refused_by", "passed")} for row in good],
    }


def _show(row: Row, *, expected: str) -> None:
    mark = expected if row["passed"] else f"NOT {expected}"
    print(f"{row['scenario']:<40}{mark:<14}{', '.join(row['refused_by'])}", flush=True)


if __name__ == "__main__":
    typer.run(gates)
