"""What several commands of `t2diff-model` ask for in the same words, and how it is understood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from model.checkpoint import Checkpoint, load_checkpoint
from model.data.dataset import Split, global_time, leave_one_out
from model.data.interactions import DataError, Interactions

SPLITS = {"leave-one-out": leave_one_out, "global-time": global_time}

SplitName = Annotated[str, typer.Option("--split", help=" or ".join(SPLITS) + ".")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Threads = Annotated[int, typer.Option(help="CPU threads of the mathematics.")]
ModelSettings = Annotated[
    list[str] | None, typer.Option("--set", help="Model setting as name=value; may be given several times.")
]


def load_trained_on(log: Interactions, checkpoint: Path, device: str) -> Checkpoint:
    """The checkpoint, if its items are those of `log`. Raises DataError when they are not."""
    trained = load_checkpoint(checkpoint, device)
    if log.item_ids != trained.item_ids:
        raise DataError(
            f"data: the items of this log are not those that {checkpoint} was trained on "
            f"({len(log.item_ids):,} here, {len(trained.item_ids):,} there); give the same log and rules"
        )
    return trained


def split_log(log: Interactions, name: str) -> Split:
    """The split of that name.   Raises DataError for another one."""
    if name not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
    return SPLITS[name](log)


def choose_device(name: str) -> str:
    """cpu or cuda.   Raises ValueError for a device that is not here."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: no CUDA device is available here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or auto, got {name!r}")
    return name


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """["kl_weight=10", "readout=mean"] -> {"kl_weight": 10, "readout": "mean"}"""
    values: dict[str, Any] = {}
    for setting in settings or []:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes name=value, got {setting!r}")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return values


def figure(value: float | None) -> str:
    """A metric as it is printed."""
    return "-" if value is None else f"{value:.4f}"
