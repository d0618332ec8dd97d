"""The figure of a report: latency percentiles on the left, latency against rate on the right."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display, no global state

_MOST_CURVES = 8  # of a long search: the rates nearest to the knee would hide each other


def draw(report: dict[str, Any]) -> bytes:
    """The figure as PNG bytes, from the report's JSON."""
    buffer = io.BytesIO()
    build(report).savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def build(report: dict[str, Any]) -> Figure:
    """The figure itself."""
    figure = Figure(figsize=(13, 5), layout="tight")
    left, right = figure.subplots(1, 2)
    probes = sorted((p for p in report["probes"] if p["latency"]), key=lambda probe: probe["asked_rate"])
    _percentile_curves(left, probes)
    _latency_by_rate(right, probes, report)
    service = report["service"]
    figure.suptitle(
        f"{service.get('model', 'recall')} on {report['hardware']['cpu']}, {report['started'][:16]}",
        fontsize=10,
    )
    return figure


def _percentile_curves(axes: Axes, probes: list[dict[str, Any]]) -> None:
    every = -(-len(probes) // _MOST_CURVES) or 1
    for probe in probes[::every]:
        curve = probe["latency"]["curve"]
        # The far right of a percentile axis is one request: 1 / (1 - p) ends at the number of requests.
        inverse = [min(1 / max(1 - p / 100, 1e-9), probe["latency"]["count"]) for p, _ in curve]
        axes.plot(inverse, [ms for _, ms in curve], marker=".", label=f"{probe['asked_rate']:g}/s")
    ticks = [1, 2, 10, 100, 1000, 10000]
    axes.set(
        xscale="log", yscale="log", xlabel="percentile", ylabel="latency from the intended send time, ms"
    )
    axes.set_xticks(ticks, ["0", "50", "90", "99", "99.9", "99.99"])
    axes.grid(alpha=0.3, which="both")
    if probes:
        axes.legend(fontsize=8)


def _latency_by_rate(axes: Axes, probes: list[dict[str, Any]], report: dict[str, Any]) -> None:
    rates = [probe["asked_rate"] for probe in probes]
    for name, label in (("p50_ms", "p50"), ("p99_ms", "p99"), ("max_ms", "max")):
        axes.plot(rates, [probe["latency"][name] for probe in probes], marker="o", label=label)
    for probe in probes:
        if probe["broken_by"]:
            axes.axvline(probe["asked_rate"], color="red", alpha=0.25)
    axes.axhline(
        report["criterion"]["p99_limit_ms"], color="black", linestyle=":", linewidth=1, label="limit of p99"
    )
    axes.set(yscale="log", xlabel="asked rate, requests/s (red: did not hold)", ylabel="latency, ms")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
