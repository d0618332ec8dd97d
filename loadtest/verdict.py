"""What a run amounts to in a few lines: the rate that held, the compute against the budget, doubts."""

from __future__ import annotations

from typing import Any

Report = dict[str, Any]


def verdict(report: Report) -> list[str]:
    """The lines that matter most, for the head of the report and for the terminal."""
    criterion = report["criterion"]
    rule = (
        f"(achieved ≥ {criterion['min_achieved']:.0%} of the rate, no errors, none degraded or short, "
        f"p99 ≤ {criterion['p99_limit_ms']:g} ms)"
    )
    held = [probe["asked_rate"] for probe in report["probes"] if not probe["broken_by"]]
    broken = [probe for probe in report["probes"] if probe["broken_by"]]
    lines = []
    if held:
        lines.append(f"- Highest rate that held: **{max(held):g} requests/s** {rule}.")
    else:
        lines.append(f"- **No rate held** {rule}.")
    above = [probe for probe in broken if not held or probe["asked_rate"] > max(held)]
    if above:
        first = min(above, key=lambda probe: probe["asked_rate"])
        late = "; the generator itself was late there" if first["generator_late"] else ""
        lines.append(f"- {first['asked_rate']:g} requests/s did not: {', '.join(first['broken_by'])}{late}.")
    elif report["knee"]:
        lines.append("- Everything up to the maximum rate held: the knee lies higher.")
    below = sorted(
        {probe["asked_rate"] for probe in broken if held and probe["asked_rate"] < max(held)} - set(held)
    )
    if below:
        rates = ", ".join(f"{rate:g}" for rate in below)
        lines.append(
            f"- Lower rates that did not hold all the same: {rates} requests/s (a disturbed machine?)."
        )
    probe = headline(report)
    lines.append(
        f"- Compute per sample at {probe['asked_rate']:g} requests/s: {compute_verdict(report, probe)}."
    )
    return lines + [f"- Careful: {warning}." for warning in _warnings(report)]


def compute_verdict(report: Report, probe: dict[str, Any]) -> str:
    """p50 / p95 / p99 of (tower + search) / batch size against the budget, and on what."""
    compute, budget = probe["per_sample"], report["budget_ms"]
    if compute is None:
        return "**not measured**, no answer carried the times of tower and search"
    return (
        f"p50 {compute['p50_ms']:.3f}, p95 {compute['p95_ms']:.3f}, p99 {compute['p99_ms']:.3f} ms against "
        f"{budget:g} ms: **{against_budget(compute['p99_ms'], budget)}** (p99) on {hardware_line(report)}"
    )


def headline(report: Report) -> dict[str, Any]:
    """The probe that stands for the run: the highest rate that held, else the lowest asked."""
    held = [probe for probe in report["probes"] if not probe["broken_by"]]
    if held:
        return max(held, key=lambda probe: probe["asked_rate"])
    return min(report["probes"], key=lambda probe: probe["asked_rate"])


def against_budget(p99_ms: float, budget_ms: float) -> str:
    """Within the budget, or how many times it."""
    ratio = p99_ms / budget_ms
    return "within budget" if ratio <= 1 else f"over budget by {ratio:.2f}×"


def _warnings(report: Report) -> list[str]:
    warnings = []
    routes: dict[str, int] = headline(report)["routes"]
    fallback = {route: count for route, count in routes.items() if route.split(" ")[0] == "popular"}
    if fallback:
        warnings.append(
            f"{sum(fallback.values()) / sum(routes.values()):.0%} of the answers came from the fallback, not "
            f"from the model: {', '.join(fallback)}; `t2diff-loadtest seed` helps where history is missing"
        )
    if headline(report)["generator_late"]:
        warnings.append("the load generator was late, so these latencies are partly its own")
    if headline(report)["num_requests"] < 1000:
        warnings.append(
            f"{headline(report)['num_requests']} requests are too few for a p99.9; it is the largest value"
        )
    if report["bundle_after"] != report["service"].get("bundle"):
        warnings.append(f"the bundle changed during the run, to {report['bundle_after']}")
    if report["service_on_this_machine"]:
        warnings.append("load generator and service shared this machine's cores")
    else:
        warnings.append("the hardware named is the load generator's; the service ran elsewhere")
    return warnings


def hardware_line(report: Report) -> str:
    """CPU, cores, GPU if one computes, and where the service says that it computes."""
    hardware = report["hardware"]
    gpu = f", {hardware['gpu']}" if hardware["gpu"] else ""
    device = report["service"].get("device", "unknown")
    return f"{hardware['cpu']} × {hardware['logical_cores']} cores{gpu}, the service's device: {device}"
