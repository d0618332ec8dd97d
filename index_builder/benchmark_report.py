"""What `t2diff-index bench` found: a table to read, a dated report to keep, flat figures to compare."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from index_builder.ann import FAISS_VERSION
from index_builder.benchmark import BATCH_SIZES, Measurement
from model.checkpoint import current_git_commit

_COLUMNS = (
    "items",
    "kind",
    "overlap",
    *(f"µs/query, {size} together" for size in BATCH_SIZES),
    *(f"× flat, {size}" for size in BATCH_SIZES),
    "build + tune s",
    "width",
    "searched GiB",
    "resident GiB",
)
_BATCH = BATCH_SIZES[-1]


def table(measured: Sequence[Measurement]) -> str:
    """A Markdown table; what `auto` takes is in bold."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(_row(entry)) + " |" for entry in measured])


def figures(measured: Sequence[Measurement], target_overlap: float) -> dict[str, float]:
    """Flat figures. `…_over_flat_…` is how many times as many queries a second, in batches of 32 (`_b1`:
    one at a time); `best` is the fastest that reached the asked overlap, within a hundredth of its rest.
    """
    flat: dict[str, float] = {}
    for entry in measured:
        name = f"{entry.kind}_{entry.label}"
        flat[f"{entry.kind}_over_flat_{entry.label}"] = entry.over_flat[_BATCH]
        flat[f"{entry.kind}_over_flat_b1_{entry.label}"] = entry.over_flat[1]
        flat[f"us_per_query_{name}"] = entry.us_per_query[_BATCH]
        flat[f"overlap_{name}"] = entry.overlap
        flat[f"build_seconds_{name}"] = entry.build_seconds + entry.tune_seconds
        flat[f"searched_gib_{name}"] = entry.file_gib
        flat[f"rss_gib_{name}"] = entry.rss_gib
    for label in dict.fromkeys(entry.label for entry in measured):
        best = best_of([entry for entry in measured if entry.label == label], target_overlap)
        flat[f"best_over_flat_{label}"] = best.over_flat[_BATCH]
        flat[f"best_over_flat_b1_{label}"] = best.over_flat[1]
        flat[f"overlap_best_{label}"] = best.overlap
        flat[f"rss_gib_best_{label}"] = best.rss_gib
    return {name: round(value, 6) for name, value in flat.items()}


def best_of(measured: Sequence[Measurement], target_overlap: float) -> Measurement:
    """The fastest whose overlap, on users that it was not tuned on, is the asked one."""
    enough = [entry for entry in measured if entry.overlap >= target_overlap]
    return max(enough or measured, key=lambda entry: entry.over_flat[_BATCH])


def write_report(
    folder: Path,
    measured: Sequence[Measurement],
    *,
    command: str,
    top_k: int,
    target_overlap: float,
    data: str,
) -> Path:
    """Write `<date>-index-bench.md` into `folder`, which is made when missing; returns its path."""
    now = datetime.now(UTC)
    best = {
        label: best_of([entry for entry in measured if entry.label == label], target_overlap)
        for label in dict.fromkeys(entry.label for entry in measured)
    }
    parts = [
        f"# Index kinds, {now:%Y-%m-%d %H:%M} UTC",
        "\n".join(
            f"- {entry.num_items:,} items: `{entry.kind}`, {entry.over_flat[_BATCH]:.1f} × as fast as `flat` "
            f"in batches of {_BATCH} ({entry.over_flat[1]:.1f} × one at a time), overlap {entry.overlap:.4f}"
            for entry in best.values()
        ),
        f"Top {top_k}, tuned to overlap {target_overlap:g} with exact search on half of the user embeddings, "
        f"measured on the other half. One thread. {data}",
        table(measured),
        "In bold what `auto` takes. Searched: the index file, and the item embeddings where it reads them. "
        "Resident: what a fresh process grew by when it opened and searched them.",
        "\n".join(
            [
                f"- command: `{command}`",
                f"- hardware: {cpu_model()}, {os.cpu_count()} CPUs, "
                f"{psutil.virtual_memory().total / (1 << 30):.0f} GiB, load {os.getloadavg()[0]:.1f}",
                f"- commit: {current_git_commit() or 'unknown'}; FAISS {FAISS_VERSION}",
            ]
        ),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d}-index-bench.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def cpu_model() -> str:
    """The processor's name as its system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _row(entry: Measurement) -> list[str]:
    return [
        f"{entry.num_items:,}",
        f"**{entry.kind}**" if entry.chosen else entry.kind,
        f"{entry.overlap:.4f}",
        *(f"{entry.us_per_query[size]:,.0f}" for size in BATCH_SIZES),
        *(f"{entry.over_flat[size]:.1f}" for size in BATCH_SIZES),
        f"{entry.build_seconds + entry.tune_seconds:.1f}",
        str(entry.width) if entry.width else "",
        f"{entry.file_gib:.2f}",
        f"{entry.rss_gib:.2f}",
    ]
