"""The report of a run: one JSON file with everything, and what is rendered from it alone.

`write_report` and `render` leave `report.json`, `report.md`, `report.png` and `report.html` in a folder;
each file is written beside its place and renamed, so that a reader never meets half of one.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest import figure, html_report, markdown
from loadtest.errors import LoadtestError
from loadtest.knee import Knee
from loadtest.probe import MIN_ACHIEVED, Probe, ProbeSettings
from loadtest.target import describe_hardware, git_commit

FORMAT = "t2diff-loadtest/1"
BUDGET_MS = 0.68  # user tower + search per sample, as the paper reports it, on Tesla T4 GPUs


@dataclass(frozen=True)
class Run:
    """Where and how the probes were made."""

    command: str
    started: datetime
    service: dict[str, Any]  # GET /v2/models/recall before the first probe
    bundle_after: str | None  # the bundle after the last probe
    settings: ProbeSettings
    p99_limit_ms: float
    service_on_this_machine: bool


def assemble(run: Run, probes: list[Probe], knee: Knee | None) -> dict[str, Any]:
    """Everything there is to say, as plain JSON types."""
    report = {
        "format": FORMAT,
        "started": run.started.astimezone(UTC).isoformat(timespec="seconds"),
        "command": run.command,
        "commit": git_commit(),
        "hardware": describe_hardware(device=run.service.get("device")),
        "service_on_this_machine": run.service_on_this_machine,
        "service": run.service,
        "bundle_after": run.bundle_after,
        "settings": asdict(run.settings),
        "criterion": {"min_achieved": MIN_ACHIEVED, "p99_limit_ms": run.p99_limit_ms},
        "budget_ms": BUDGET_MS,
        "knee": knee and {"highest_held": knee.highest_held, "lowest_broken": knee.lowest_broken},
        "probes": [asdict(probe) | {"broken_by": probe.broken_by(run.p99_limit_ms)} for probe in probes],
    }
    return json.loads(json.dumps(report))  # as it will be read back: rendering sees one form only


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write the JSON, then render the rest from it."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "report.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    render(report, folder)


def render(report: dict[str, Any], folder: Path) -> None:
    """(Re-)write `report.md`, `report.png` and `report.html`."""
    _replace(folder / "report.png", figure.draw(report))
    _replace(folder / "report.md", markdown.render(report).encode())
    _replace(folder / "report.html", html_report.render(report).encode())


def read_report(folder: Path) -> dict[str, Any]:
    """The report in a folder; LoadtestError when there is none or it is of another format."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_bytes())
    except OSError as error:
        raise LoadtestError(f"no report in {folder} ({error.strerror}: report.json)") from None
    except ValueError as error:
        raise LoadtestError(f"{path} is not JSON: {error}") from None
    found = report.get("format") if isinstance(report, dict) else None
    if found != FORMAT:
        raise LoadtestError(f"{path} has the format {found!r}, not {FORMAT!r}: run the load test again")
    return report


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
