"""`t2diff-index bench-build`: what builds cost, as a dated report."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from index_builder.ann import FAISS_VERSION
from index_builder.benchmark_corpora import parse_sizes
from index_builder.benchmark_report import cpu_model
from index_builder.build_benchmark import ALLOWANCE_BYTES, BuildCost, measure_builds
from model.checkpoint import current_git_commit

_COLUMNS = (
    "items",
    "kind",
    "overlap",
    "index GiB",
    "bundle GiB",
    "peak GiB",
    "of it anonymous at most",
    "peak − index GiB",
    "wall s",
    "CPU s",
)


def bench_build(items: str, kinds: str, *, dim: int, folder: Path | None, out: Path | None) -> None:
    """Build generated bundles in fresh processes and report their memory and time."""
    sizes = parse_sizes(items)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="t2diff-bench-build-", dir=folder) as room:
        costs = measure_builds(
            sizes, kinds.split(","), Path(room), dim=dim, report=lambda text: print(text, file=sys.stderr)
        )
    text = render(costs, dim=dim, load=max(load_before, os.getloadavg()[0]))
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{datetime.now(UTC):%Y-%m-%d}-build-memory.md").write_text(text)


def render(costs: Sequence[BuildCost], *, dim: int, load: float) -> str:
    """The report."""
    allowance = ALLOWANCE_BYTES / 2**30
    lines = [f"# Memory and time of a build, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", ""]
    lines += [_verdict(cost) for cost in costs] + ["", *_growth(costs), ""]
    lines += ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_row(cost)) + " |" for cost in costs]
    lines += [
        "",
        f"Each row: one build in a fresh process, one thread, one run, T2Diff of d = {dim} with generated "
        "embeddings, read from a checkpoint on disk. Index: the index file and the item embeddings where it "
        "searches them. Peak: `VmHWM`, of libraries, anonymous memory and pages of mapped files together "
        "(the system may drop the latter: the checkpoint's weights and the bundle that is read back). "
        f"Asked for: peak within {allowance:g} GiB over the index.",
        "",
        "Seconds by stage (CPU), and the peak of anonymous memory in it:",
        "",
    ]
    names = [stage.name for stage in costs[0].stages]
    lines += ["| items | kind | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for cost in costs:
        cells = [
            f"{stage.seconds:,.1f} ({stage.cpu_seconds:,.1f}), {stage.anonymous_bytes / 2**30:.2f} GiB"
            for stage in cost.stages
        ]
        lines.append(f"| {cost.num_items:,} | {cost.kind} | " + " | ".join(cells) + " |")
    memory = psutil.virtual_memory().total / 2**30
    lines += [
        "",
        f"- command: `t2diff-index {' '.join(sys.argv[1:])}`",
        f"- hardware: {cpu_model()}, {os.cpu_count()} CPUs, {memory:.0f} GiB, load {load:.1f}",
        f"- commit: {current_git_commit()}; FAISS {FAISS_VERSION}",
    ]
    return "\n".join(lines) + "\n"


def _verdict(cost: BuildCost) -> str:
    word = "within" if cost.over_index_bytes <= ALLOWANCE_BYTES else "NOT within"
    return (
        f"- {cost.num_items:,} items, `{cost.kind}`: {cost.over_index_bytes / 2**30:.2f} GiB over the index, "
        f"{word} {ALLOWANCE_BYTES / 2**30:g} GiB"
    )


def _growth(costs: Sequence[BuildCost]) -> list[str]:
    """From the fewest items of a kind to the most."""
    lines = []
    small, large = min(cost.num_items for cost in costs), max(cost.num_items for cost in costs)
    firsts = [cost for cost in costs if cost.num_items == small]
    for first in firsts if small < large else []:
        for last in costs:
            if last.num_items == large and last.kind == first.kind:
                lines.append(
                    f"- `{first.kind}`, {large / small:g} × the items: "
                    f"{last.peak_bytes / first.peak_bytes:.1f} × peak memory, "
                    f"{last.anonymous_bytes / first.anonymous_bytes:.1f} × anonymous memory, "
                    f"{last.cpu_seconds / first.cpu_seconds:.1f} × CPU seconds"
                )
    return lines


def _row(cost: BuildCost) -> tuple[str, ...]:
    return (
        f"{cost.num_items:,}",
        cost.kind,
        f"{cost.overlap:.4f}",
        *(
            f"{size / 2**30:.2f}"
            for size in (cost.index_bytes, cost.bundle_bytes, cost.peak_bytes, cost.anonymous_bytes)
        ),
        f"{cost.over_index_bytes / 2**30:.2f}",
        f"{cost.seconds:,.0f}",
        f"{cost.cpu_seconds:,.0f}",
    )
