"""What a comparison does for one run: train it, measure the best checkpoint, keep figures and ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from model.checkpoint import load_checkpoint, write_folder
from model.data.dataset import Split
from model.experiments.drift_similarity import drift_similarity
from model.experiments.inference_time import ms_per_sample
from model.experiments.intent_trust import intent_trust
from model.experiments.job_pool import Report
from model.experiments.measurement import measure
from model.experiments.runs import MEASURED, SHARE_OF_TRAINING, Run, alone_in, train_run
from model.metrics import item_reference
from model.t2diff import T2Diff
from model.two_tower import TwoTower

PARTS = ("test", "validation")


def carry_out(run: Run, split: Split, report: Report) -> None:
    """Train and measure, from wherever an earlier attempt stopped.   Jobs call it."""
    with alone_in(run.folder):
        if run.finished:
            return
        train_run(run, split, report)
        report(SHARE_OF_TRAINING, "measuring")
        _measure(run, split, report)
        report(1.0, "done")


def _measure(run: Run, split: Split, report: Report) -> None:
    device = run.training.device
    torch.set_num_threads(run.training.num_threads)
    torch.manual_seed(run.training.seed)
    trained = load_checkpoint(run.folder / "train", device)
    state = run.training_state()
    reference = item_reference(split.train)
    figures: dict[str, Any] = {
        **parameter_counts(trained.model),
        "train_seconds": round(state["seconds"], 3),
        "epochs": state["epoch"],
        "best_epoch": state["best_epoch"],
        "train_targets_per_second": _targets_per_second(split, state),
        "ms_per_sample": round(ms_per_sample(trained.model, split.test, device=device), 4),
        "hardware": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"cpu, {run.training.num_threads} thread(s)",
        "git_commit": trained.git_commit,
    }
    ranks: dict[str, np.ndarray] = {}
    for number, part in enumerate(PARTS):
        report(SHARE_OF_TRAINING + 0.04 * number, f"measuring {part}")
        figures[part], of_part = measure(
            trained.model,
            getattr(split, part),
            item_counts=split.train.item_counts(),
            reference=reference,
            uses_time=part == "test" and bool(run.model_config.get("time_lag")),
            device=device,
        )
        ranks |= {f"{part}.{kind}": rank for kind, rank in of_part.items()}
    if isinstance(trained.model, T2Diff) and trained.model.num_steps:
        figures["drift_similarity"] = drift_similarity(trained.model, split.test, device=device)
        figures["intent_trust"] = intent_trust(trained.model, split.test, device=device)

    def write(folder: Path) -> None:
        save_file(ranks, folder / "ranks.safetensors")
        (folder / "figures.json").write_text(json.dumps(figures, indent=1))

    write_folder(run.folder / MEASURED, write)
    (run.folder / "error.txt").unlink(missing_ok=True)


def parameter_counts(model: TwoTower) -> dict[str, int]:
    """How many parameters do not grow with the catalogue, and how many there are in all."""
    of_items = (model.num_items, model.num_items + 1)
    sizes = [(len(p) in of_items if p.ndim else False, p.numel()) for p in model.parameters()]
    return {
        "params": sum(size for grows, size in sizes if not grows),
        "params_with_items": sum(size for _, size in sizes),
    }


def _targets_per_second(split: Split, state: dict[str, Any]) -> float | None:
    lengths = np.diff(split.train.offsets)
    targets = int(np.maximum(lengths - 1, 0).sum()) * state["epoch"]
    return round(targets / state["seconds"], 1) if state["seconds"] > 0 else None
