"""A report as one HTML file, in the dress of the model's."""

from __future__ import annotations

import re

from loadtest import figure
from loadtest.generator import STAGES
from loadtest.verdict import Report, hardware_line, verdict
from model.report.page import Html, chart, marked, page, section, table


def render(report: Report) -> str:
    """The whole report; everything comes from its JSON."""
    service, settings = report["service"], report["settings"]
    facts = [
        ("started", report["started"][:16].replace("T", " ") + " UTC"),
        ("model", service.get("model", "-")),
        ("items", f"{service.get('num_items', 0):,}"),
        ("tower engine", service.get("tower_engine", "-")),
        ("bundle", service.get("bundle", "-")),
        ("hardware", hardware_line(report)),
        ("commit", str(report["commit"] or "unknown")[:12]),
        ("users, top_k", f"{settings['num_users']:,}, {settings['top_k']}"),
    ]
    said = [re.sub(r"[*`]", "", line.removeprefix("- ")) for line in verdict(report)]
    return page(
        f"Load test of {service.get('model', 'recall')}",
        facts,
        [
            section("In short", " ".join(said)),
            section(
                "End to end",
                "Milliseconds from the intended send time to the whole answer: what waits is counted.",
                _latency(report),
                chart(figure.build(report), "latency percentiles, and latency against rate"),
            ),
            section(
                "Stages", "p50 and p99 in milliseconds; tower and search of the whole batch.", _stages(report)
            ),
        ],
    )


def _latency(report: Report) -> Html:
    rows = []
    for probe in report["probes"]:
        found = probe["latency"] or {}
        times = [_ms(found.get(name)) for name in ("p50_ms", "p95_ms", "p99_ms", "p999_ms")]
        held = "yes" if not probe["broken_by"] else marked("no: " + ", ".join(probe["broken_by"]))
        rows.append(
            [f"{probe['asked_rate']:g}", f"{probe['achieved_rate']:.1f}", *times, probe["num_degraded"], held]
        )
    return table(["asked /s", "achieved /s", "p50", "p95", "p99", "p99.9", "degraded", "held"], rows)


def _stages(report: Report) -> Html:
    rows = []
    for probe in report["probes"]:
        stages = [probe["stages"].get(stage) or {} for stage in STAGES]
        cells = [f"{_ms(stage.get('p50_ms'))} / {_ms(stage.get('p99_ms'))}" for stage in stages]
        rows.append([f"{probe['asked_rate']:g}", *cells])
    return table(["asked /s", *STAGES], rows)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
