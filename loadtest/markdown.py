"""A report as Markdown; everything comes from the report's JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loadtest.verdict import Report, against_budget, hardware_line, verdict


def render(report: Report) -> str:
    """The whole report."""
    service, settings = report["service"], report["settings"]
    parts = [
        f"# Load test of `{service.get('model', 'recall')}`, {report['started'][:16].replace('T', ' ')} UTC",
        "\n".join(verdict(report)),
        _facts(report),
        "## End to end\n\nMilliseconds from the *intended* send time to the whole answer, over answers and "
        "timeouts (a timeout counts as long as it was waited for).\n\n" + _latency_table(report),
        "## Stages\n\nMilliseconds as the service reports them (`Server-Timing`), p50 / p99. Tower and "
        "search are those of the whole batch.\n\n" + _stage_table(report),
        f"## Compute per sample\n\n(tower + search) / batch size, milliseconds; the budget is "
        f"{report['budget_ms']:g} ms (the paper's figure, measured on Tesla T4 GPUs).\n\n"
        + _compute_table(report),
        "## Batch sizes\n\nShare of requests by the size of the batch that they were in.\n\n"
        + _batch_table(report),
        "## The generator\n\nMilliseconds between intended and actual send; this lag is part of the "
        "latencies above.\n\n" + _generator_table(report),
        "![latency percentiles, and latency against rate](report.png)",
        "<details><summary>Settings</summary>\n\n```\n"
        + "\n".join(f"{name} = {value}" for name, value in settings.items())
        + "\n```\n\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(report: Report) -> str:
    service, settings, hardware = report["service"], report["settings"], report["hardware"]
    facts = {
        "command": f"`{report['command']}`",
        "hardware": f"{hardware_line(report)}, {hardware['memory_gib']:g} GiB, {hardware['system']}",
        "commit": f"`{report['commit'] or 'unknown'}`",
        "bundle": f"`{service.get('bundle')}`",
        "service": f"model {service.get('model')}, {service.get('num_items')} items, "
        f"index {service.get('index')}",
        "arrivals": f"{settings['arrivals']}, {settings['duration_s']:g} s after {settings['warmup_s']:g} s "
        f"of warm-up, {settings['num_users']:,} users, top_k {settings['top_k']}",
    }
    return table(["", ""], [[name, value] for name, value in facts.items()])


def _latency_table(report: Report) -> str:
    rows = []
    for probe in report["probes"]:
        routes = ", ".join(f"{route} {count}" for route, count in probe["routes"].items()) or "–"
        errors = ", ".join(f"{name} {count}" for name, count in probe["errors"].items()) or "0"
        held = "yes" if not probe["broken_by"] else "**no**: " + ", ".join(probe["broken_by"])
        percentiles = [
            _ms(probe["latency"], name) for name in ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
        ]
        asked, achieved = f"{probe['asked_rate']:g}", f"{probe['achieved_rate']:.1f}"
        rows.append([asked, achieved, *percentiles, errors, str(probe["num_degraded"]), routes, held])
    columns = [
        "asked /s",
        "achieved /s",
        "p50",
        "p95",
        "p99",
        "p99.9",
        "max",
        "errors",
        "degraded",
        "routes",
        "held",
    ]
    return table(columns, rows)


def _stage_table(report: Report) -> str:
    stages = list(report["probes"][0]["stages"])
    return _by_rate(
        report,
        stages,
        lambda probe: [
            f"{_ms(probe['stages'][stage], 'p50_ms')} / {_ms(probe['stages'][stage], 'p99_ms')}"
            for stage in stages
        ],
    )


def _compute_table(report: Report) -> str:
    def row(probe: dict[str, Any]) -> list[str]:
        compute = probe["per_sample"]
        if compute is None:
            return ["–", "–", "–", "not measured"]
        three = [f"{compute[name]:.3f}" for name in ("p50_ms", "p95_ms", "p99_ms")]
        return [*three, against_budget(compute["p99_ms"], report["budget_ms"])]

    return _by_rate(report, ["p50", "p95", "p99", "verdict on p99"], row)


def _batch_table(report: Report) -> str:
    def row(probe: dict[str, Any]) -> list[str]:
        sizes = probe["batch_sizes"]
        total = sum(count for _, count in sizes)
        shares = ", ".join(f"{size}: {count / total:.1%}" for size, count in sizes)
        mean = f"{sum(size * count for size, count in sizes) / total:.2f}" if total else "–"
        return [mean, shares or "–"]

    return _by_rate(report, ["mean", "size: share"], row)


def _generator_table(report: Report) -> str:
    return _by_rate(
        report,
        [
            "lag p50",
            "lag p99",
            "lag max",
            "late",
            "p99 from actual send",
            "waited for a connection",
            "CPU, of one core",
        ],
        lambda probe: [
            *(_ms(probe["lag"], name) for name in ("p50_ms", "p99_ms", "max_ms")),
            "**yes**" if probe["generator_late"] else "no",
            _ms(probe["since_sent"], "p99_ms"),
            str(probe["waited_for_connection"]),
            f"{probe['generator_cpu_share']:.0%}",
        ],
    )


def _by_rate(report: Report, columns: list[str], row: Callable[[dict[str, Any]], list[str]]) -> str:
    return table(
        ["asked /s", *columns], [[f"{probe['asked_rate']:g}", *row(probe)] for probe in report["probes"]]
    )


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _ms(percentiles: dict[str, Any] | None, name: str) -> str:
    return "–" if percentiles is None else f"{percentiles[name]:.2f}"
