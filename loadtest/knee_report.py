"""What `t2diff-loadtest knee` leaves behind: a table for the terminal, and a dated folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.generator import STAGES
from loadtest.knee_bench import FLOOR, SHARES, Figures, Measured, detail
from loadtest.markdown import table

_RATIOS = {
    "knee_fused_over_eager": "knee, fused over eager",
    "ddim10_over_ddpm50_rps": "knee, DDIM-10 over the bundle's own sampling, both fused",
    "overhead_us_per_request_at_knee": "microseconds a request outside tower and search, fused, at the knee",
    "floor_us_per_request": "microseconds a request of the empty endpoint, at 70 % of the fused knee",
    "p99_over_p50_at_70": "p99 over p50 at 70 % of the knee, fused",
}


def knee_report(figures: Figures, measured: Sequence[Measured]) -> str:
    """Markdown: the machine, the knees, the steady rates with their stages and batches, the ratios."""
    steady = [one for one in measured if one.share is not None]
    names = list(dict.fromkeys(one.name for one in measured))
    lines = [
        f"# Knee of the service, {figures['num_items']} items, top {figures['top_k']}, {figures['date']}",
        "",
        f"`{figures['command']}`",
        "",
        f"{figures['cpu']}; service on CPUs {figures['server_cpus']}, generator on "
        f"{figures['generator_cpus']}; commit {figures['commit']}; index {figures['index']}.",
        f"While the generator's CPUs are busy, a loop on the service's takes "
        f"{_number(figures['slowdown_by_generator_cpus'])} times as long (2: threads of one core).",
        f"A rate holds with 99 % of it achieved, no error, nothing degraded or short, p99 up to "
        f"{figures['p99_limit_ms']} ms.",
        "",
        table(
            ["", "knee, requests/s", "engine", "us a request outside tower and search, at the knee"],
            [
                [
                    name,
                    _number(figures[f"knee_rps_{name}"]) + _limit(figures, name),
                    str(figures.get(f"{name}_engine") or "-"),
                    _number(figures[f"{name}_overhead_us_at_knee"]),
                ]
                for name in names
            ],
        ),
        "",
        *(f"- {text}: {_number(figures.get(key))}" for key, text in _RATIOS.items()),
        *(_memory_line(figures, name) for name in names if name != FLOOR),
        "",
        "Latency in ms from the intended send time; CPU in us a request.",
        "",
        table(
            ["", "% of knee", "/s", "p50", "p95", "p99", "p99.9", "CPU", "outside", "Redis", "held"],
            [_latency_row(figures, one) for one in steady],
        ),
        "",
        "Stages, p50 in ms (tower and search: the whole batch), and the sizes of batches.",
        "",
        table(
            ["", "% of knee", *STAGES, "mean batch", "size: share of requests"],
            [_stage_row(figures, one) for one in steady if one.name != FLOOR],
        ),
        "",
        "The empty endpoint was asked at the rates of the fused engine.",
        "",
    ]
    return "\n".join(lines)


def _memory_line(figures: Figures, name: str) -> str:
    index, memory = (float(figures[key] or 0) / 2**30 for key in ("index_bytes", f"{name}_rss_bytes"))
    start = _number(figures[f"{name}_start_seconds"])
    beyond = figures[f"{name}_rss_less_1_gib_over_index"]
    over = isinstance(beyond, int | float) and beyond > 0
    memory_beyond = f"beyond 1 GiB {_number(beyond)} times the index" if over else "all within 1 GiB"
    return (
        f"- {name}: ready after {start} s; {memory:.2f} GiB resident after the load, index {index:.2f} GiB: "
        f"{memory_beyond}"
    )


def write_knee_report(figures: Figures, measured: Sequence[Measured], folder: Path) -> Path:
    """`folder/knee-<items>-<date>/` with report.md, report.png, figures.json, probes.json.   -> it"""
    stamp = str(figures["date"]).replace("-", "").replace(":", "").partition("+")[0]
    to = folder / f"knee-{figures['num_items']}-{stamp}Z"
    to.mkdir(parents=True, exist_ok=True)
    (to / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (to / "probes.json").write_text(json.dumps(detail(measured)) + "\n")
    (to / "report.png").write_bytes(_draw(figures, measured))
    (to / "report.md").write_text(knee_report(figures, measured) + "\n![](report.png)\n")
    return to


def _latency_row(figures: Figures, one: Measured) -> list[str]:
    def at(key: str) -> Any:
        return figures.get(f"{one.name}_{key}_at_{one.share}")

    late = " (generator late)" if at("generator_late") else ""
    keys = ("rps", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "cpu_us", "overhead_us", "redis_us")
    return [
        one.name,
        str(one.share),
        *(_number(at(key)) for key in keys),
        ("yes" if one.held else "no") + late,
    ]


def _stage_row(figures: Figures, one: Measured) -> list[str]:
    stages = [_number(figures.get(f"{one.name}_{stage}_p50_ms_at_{one.share}")) for stage in STAGES]
    total = sum(count for _, count in one.probe.batch_sizes) or 1
    most = sorted(one.probe.batch_sizes, key=lambda pair: -pair[1])[:6]
    shares = ", ".join(f"{size}: {count / total:.0%}" for size, count in sorted(most))
    mean = _number(figures.get(f"{one.name}_batch_mean_at_{one.share}"))
    return [one.name, str(one.share), *stages, mean, shares]


def _limit(figures: Figures, name: str) -> str:
    return " or more: the generator's own limit" if figures.get(f"{name}_limited_by_generator") else ""


def _draw(figures: Figures, measured: Sequence[Measured]) -> bytes:
    import io

    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(13, 5), layout="tight")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(one.name for one in measured))
    for number, name in enumerate(names):
        steady = [one for one in measured if one.name == name and one.share is not None and one.probe.latency]
        rates = [one.probe.asked_rate for one in steady]
        for key, style in (("p50_ms", ":"), ("p99_ms", "-")):
            values = [getattr(one.probe.latency, key) for one in steady]
            left.plot(rates, values, style, marker="o", color=f"C{number}", label=f"{name} {key[:-3]}")
    left.set(xscale="log", yscale="log", xlabel="requests/s", ylabel="latency from the intended send, ms")
    left.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    at_90 = [one for one in measured if one.share == SHARES[-1]]
    bottom = [0.0] * len(at_90)
    for part in ("tower", "search", "overhead"):
        heights = [one.microseconds(getattr(one.cpu, part)) for one in at_90]
        right.bar([one.name for one in at_90], heights, bottom=bottom, label=part)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    right.set(ylabel=f"CPU at {SHARES[-1]} % of the knee, us a request")
    right.legend(fontsize=8)
    figure.suptitle(f"{figures['num_items']} items, {figures['cpu']}, {figures['date']}", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
