"""The pictures of a comparison, drawn from its rows and entries alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.experiments.intent_trust import KINDS
from model.experiments.markdown_cells import Row, is_baseline, label_of, spec_of

_MARKERS = "osv^D<>Pp*X"


def plot_recall_by_k(path: Path, rows: list[Row]) -> None:
    """Recall@K against K on a logarithmic axis; T2Diff and its variants dashed."""
    figure, axes = _figure(9.0, 4.8)
    for number, row in enumerate(rows):
        cutoffs = [int(cutoff) for cutoff in row["recall_curve"]]
        style = "-" if is_baseline(row) else "--"
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(
            cutoffs,
            list(row["recall_curve"].values()),
            style,
            marker=marker,
            ms=4,
            lw=1,
            label=label_of(spec_of(row)),
        )
    axes.set(xscale="log", xlabel="K", ylabel="Recall@K", title=_title(rows))
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)


def plot_recall_by_time(path: Path, rows: list[Row], cutoff: int = 20) -> None:
    """Recall@K against what a user embedding costs."""
    figure, axes = _figure(8.0, 4.8)
    for row in rows:
        place = (row["ms_per_sample"], row["metrics"][f"recall_at_{cutoff}"])
        low, high = row["intervals"][f"recall_at_{cutoff}"]
        color = "tab:gray" if is_baseline(row) else "tab:red"
        axes.vlines(place[0], low, high, color=color, lw=1)
        axes.plot(*place, "o", color=color, ms=5)
        axes.annotate(label_of(spec_of(row)), place, xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.set(
        xscale="log", xlabel="user tower, ms/sample", ylabel=f"Recall@{cutoff}, 95 %", title=_title(rows)
    )
    axes.margins(x=0.15)
    axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def plot_drift_similarity(path: Path, entries: list[dict[str, Any]]) -> None:
    """Figure 4: cos(ẑ_0, z_0) along the reverse process, over all positions and at the last one.

    entries: of results.json, each with `drift_similarity`, one for each spec
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {"all": "all positions", "last": "position before the target"}
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for entry in entries:
            found = entry["drift_similarity"]
            axes.plot(found["step"], found[name], label=spec_of(entry))
            axes.fill_between(found["step"], found[f"{name}_low"], found[f"{name}_high"], alpha=0.12)
        axes.set(title=title, xlabel="reverse step r", ylabel="cos(ẑ₀, z₀), with deciles 1 and 9")
        axes.invert_xaxis()
        axes.label_outer()
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_intent_trust(path: Path, entries: list[dict[str, Any]], cutoff: int = 20) -> None:
    """Recall@K when the tower is handed the true next item, a random one, and its own x̂.

    entries: of results.json, each with `intent_trust`, one for each spec
    """
    figure, axes = _figure(8.0, 3.8)
    width = 0.8 / len(KINDS)
    for number, kind in enumerate(KINDS):
        heights = [entry["intent_trust"][kind][f"recall_at_{cutoff}"] for entry in entries]
        bars = axes.bar([place + width * number for place in range(len(entries))], heights, width, label=kind)
        axes.bar_label(bars, fmt="%.3f", fontsize=7)
    axes.set_xticks([place + width for place in range(len(entries))], [spec_of(entry) for entry in entries])
    axes.set(ylabel=f"Recall@{cutoff}", title="x̂ handed to the tower")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _title(rows: list[Row]) -> str:
    return f"{rows[0]['dataset']}, {rows[0]['split'].replace('_', '-')}, {rows[0]['part']}"
