"""Everything there is to measure on a GPU, in one command and under ten minutes.

Builds the engines, holds each to float64, times them in turns, then the search. What does not fit into the
time is left out and named. Not run on a GPU: none was at hand when this was written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from loadtest.errors import LoadtestError
from loadtest.gpu_search import CORPORA, faiss_facts, search_figures
from loadtest.gpu_timing import EventClock
from loadtest.gpu_towers import BATCH_SIZES, float64_errors, gpu_engines, plain_tower, tower_times
from loadtest.markdown import table
from loadtest.target import describe_hardware, git_commit
from model.t2diff import T2Diff

SECONDS = 510.0
"""After this nothing new is begun; the longest single part, a compilation, takes about a minute."""

Figures = dict[str, Any]
Say = Callable[[str], None]


def bench_gpu(model: T2Diff, *, rounds: int, say: Say) -> Figures:
    """Flat figures, as `--json` writes them.   model: in evaluation mode   say: hears what is being done

    Raises LoadtestError without a GPU.
    """
    if not torch.cuda.is_available():
        raise LoadtestError(
            "torch sees no GPU here: this command measures one, `t2diff-loadtest tower` the CPU"
        )
    started, clock = time.monotonic(), EventClock()
    skipped: list[str] = []

    def in_time(part: str) -> bool:
        if time.monotonic() - started < SECONDS:
            say(part)
            return True
        skipped.append(part)
        return False

    say("the engines")
    model = model.cuda()
    engines, absent = gpu_engines(model)
    figures: Figures = {"seconds_to_build": time.monotonic() - started}
    figures |= {f"absent_{name}": reason for name, reason in absent.items()}
    compiled = engines.pop("compiled", None)
    say("float64")
    figures |= checked(
        float64_errors(model, engines), {name: each.tolerance for name, each in engines.items()}
    )
    embeds = {"eager": plain_tower(model)} | {name: each.user_embeddings for name, each in engines.items()}
    for size in BATCH_SIZES:
        if in_time(f"towers, batch {size}"):
            times = tower_times(model, embeds, clock, size=size, rounds=rounds)
            figures |= {f"ms_per_sample_{name}_b{size}": ms for name, ms in times.items()}
    for num_items in CORPORA:
        if in_time(f"search, {num_items:,} items"):
            figures |= search_figures(clock, rounds=rounds, num_items=num_items)
    figures |= faiss_facts()
    for size in (1, 256, 32, 8, 128):  # the slowest to build comes last
        if compiled is not None and in_time(f"compiled step, batch {size}"):
            try:
                times = tower_times(
                    model, {"compiled": compiled.user_embeddings}, clock, size=size, rounds=rounds
                )
            except RuntimeError as error:  # torch.compile wants a C compiler and Triton
                figures["absent_compiled"] = str(error).splitlines()[0]
                break
            figures[f"ms_per_sample_compiled_b{size}"] = times["compiled"]
    return {
        **figures,
        **ratios(figures),
        **describe_hardware(device="cuda"),
        "skipped": ", ".join(skipped),
        "seconds": round(time.monotonic() - started, 1),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def checked(errors: dict[str, float], tolerances: dict[str, float]) -> Figures:
    """error_NAME, and the names of those beyond their tolerance under `wrong`."""
    wrong = [name for name, error in errors.items() if not error <= tolerances[name]]
    return {f"error_{name}": error for name, error in errors.items()} | {"wrong": ", ".join(wrong)}


def ratios(figures: Figures) -> Figures:
    """How many times as fast: graph_over_eager_b1 and so on; and ms_per_sample_bN of the fastest engine."""
    found: Figures = {}
    for size in BATCH_SIZES:
        ms = {
            name: figures[f"ms_per_sample_{name}_b{size}"]
            for name in ("eager", "exact", "compiled", "graph", "persistent")
            if f"ms_per_sample_{name}_b{size}" in figures
        }
        for fast in ms:
            for slow in ("eager", "graph"):
                if slow in ms and fast not in ("eager", slow):
                    found[f"{fast}_over_{slow}_b{size}"] = ms[slow] / ms[fast]
        served = [ms[name] for name in ("graph", "persistent") if name in ms]
        if served:
            found[f"ms_per_sample_b{size}"] = min(served)
    return found


def gpu_report(figures: Figures, command: str) -> str:
    """Markdown: the machine, the errors, milliseconds a sample by engine and batch, the rest as a list."""
    names = [
        name
        for name in ("eager", "counter", "exact", "compiled", "graph", "persistent")
        if f"ms_per_sample_{name}_b{BATCH_SIZES[0]}" in figures
    ]
    rows = [
        [name, *(_cell(figures, name, size) for size in BATCH_SIZES), _number(figures.get(f"error_{name}"))]
        for name in names
    ]
    columns = ["engine", *(f"batch {size}" for size in BATCH_SIZES), "error against float64"]
    shown = {f"{kind}_{name}" for kind in ("error", "engine") for name in names}
    rest = [
        f"- {name}: {_number(value)}"
        for name, value in sorted(figures.items())
        if name not in shown and not name.startswith("ms_per_sample_") and value not in (None, "")
    ]
    title = f"# User tower on {figures.get('gpu') or 'a GPU'}, {figures.get('date')}"
    about = (
        "Milliseconds a sample, medians of turns, and how many times as fast as `eager`, the model's own "
        "code with torch's noise; `counter` is that code under the service's noise, drawn on the host."
    )
    return "\n".join([title, "", f"`{command}`", "", about, "", table(columns, rows), "", *rest, ""])


def write_gpu_report(figures: Figures, command: str, folder: Path) -> Path:
    """`folder/gpu-<date>/` with report.md and figures.json.   -> the new folder"""
    stamp = str(figures["date"]).replace("-", "").replace(":", "").partition("+")[0]
    to = folder / f"gpu-{stamp}Z"
    to.mkdir(parents=True, exist_ok=True)
    (to / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (to / "report.md").write_text(gpu_report(figures, command))
    return to


def _cell(figures: Figures, name: str, size: int) -> str:
    ms, ratio = figures.get(f"ms_per_sample_{name}_b{size}"), figures.get(f"{name}_over_eager_b{size}")
    if ms is None:
        return "–"
    return f"{ms:.4f} ms" + (f", {ratio:.1f}×" if ratio else "")


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value) if value is not None else "–"
