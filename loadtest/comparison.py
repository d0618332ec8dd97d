"""Two reports side by side, as ratios."""

from __future__ import annotations

from loadtest.markdown import table
from loadtest.verdict import Report, hardware_line


def compare(before: Report, after: Report) -> str:
    """Two reports as one table of ratios after / before; rates that only one of them has are left out."""
    rows: list[tuple[str, float | None, float | None]] = [
        ("highest rate held, requests/s", _highest_held(before), _highest_held(after))
    ]
    after_by_rate = {probe["asked_rate"]: probe for probe in after["probes"]}
    for probe in sorted(before["probes"], key=lambda probe: probe["asked_rate"]):
        other = after_by_rate.get(probe["asked_rate"])
        for name, field, percentile in (
            ("latency p50, ms", "latency", "p50_ms"),
            ("latency p99, ms", "latency", "p99_ms"),
            ("compute per sample p50, ms", "per_sample", "p50_ms"),
            ("compute per sample p99, ms", "per_sample", "p99_ms"),
        ):
            if other and probe[field] and other[field]:
                rows.append(
                    (
                        f"{name}, at {probe['asked_rate']:g}/s",
                        probe[field][percentile],
                        other[field][percentile],
                    )
                )
    head = [
        f"- {name}: {report['started']}, bundle `{report['service'].get('bundle')}`, commit "
        f"`{report['commit']}`, {hardware_line(report)}"
        for name, report in (("before", before), ("after", after))
    ]
    if before["hardware"] != after["hardware"]:
        head.append("- Careful: the hardware differs, the ratios compare machines too.")
    ratios = table(
        ["", "before", "after", "after / before"],
        [[name, _number(a), _number(b), f"{b / a:.2f}×" if a and b else "–"] for name, a, b in rows],
    )
    return "\n".join(head) + "\n\n" + ratios


def _highest_held(report: Report) -> float | None:
    return max((probe["asked_rate"] for probe in report["probes"] if not probe["broken_by"]), default=None)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
