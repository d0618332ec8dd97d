"""Which model `t2diff-loadtest tower` runs, and how its figures are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from index_builder.bundle import BundleError, load_bundle
from loadtest.errors import LoadtestError
from loadtest.tower_bench import BATCH_SIZES, FEWER_STEPS
from model.registry import build_model
from model.t2diff import T2Diff

RANDOM_ITEMS = 3_706  # MovieLens-1M's


def tower_model(bundle: Path | None) -> T2Diff:
    """The bundle's model, or a T2Diff of default settings with random weights."""
    if bundle is None:
        torch.manual_seed(0)
        model = build_model("t2diff", {}, RANDOM_ITEMS).eval()
    else:
        try:
            model = load_bundle(bundle).model
        except BundleError as error:
            raise LoadtestError(f"bundle: {error}") from None
    if not isinstance(model, T2Diff):
        raise LoadtestError(f"bundle {bundle} holds {type(model).__name__}: this measures T2Diff's engines")
    return model


def tower_table(figures: dict[str, Any]) -> str:
    """Markdown: milliseconds a sample and how many times as fast as the plain code."""
    names = [name.removeprefix("engine_") for name in figures if name.startswith("engine_")]
    lines = [
        f"| engine | {' | '.join(f'batch {size}' for size in BATCH_SIZES)} |",
        f"|---|{'---|' * len(BATCH_SIZES)}",
    ]
    for name in names:
        cells = []
        for size in BATCH_SIZES:
            ratio = figures.get(f"{name}_over_eager_b{size}")
            cells.append(
                f"{figures[f'ms_per_sample_{name}_b{size}']:.3f} ms" + (f", {ratio:.1f}×" if ratio else "")
            )
        lines.append(f"| {name} ({figures[f'engine_{name}']}) | {' | '.join(cells)} |")
    lines.append("")
    for name, text in (
        ("b1_over_b128", "fused, a sample of batch 1 over one of batch 128"),
        ("peak_share_bf16", "share of the core's bf16 peak"),
        ("peak_share_fp32", "share of the core's fp32 peak"),
        *(
            (f"ddim{steps}_over_ddpm50", f"DDIM-{steps} against the model's own sampling")
            for steps in FEWER_STEPS
        ),
    ):
        if name in figures:
            lines.append(f"- {text}: {figures[name]:.2f}")
    if "engine_fused" not in figures:
        lines.append("- no fused engine: its library was not built here")
    lines.append(f"- {figures['cpu']}, one thread, {figures['rounds']} rounds, commit {figures['commit']}")
    return "\n".join(lines)
