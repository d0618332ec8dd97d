"""Where a run stands, in `state/` of its folder: enough to go on to the bit as if never interrupted.

The weights, the optimiser and the random state are tensors; the rest, and what the run was started
with, stand in `run.json` beside them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from model.checkpoint import recover_folder, write_folder
from model.two_tower import TwoTower


@dataclass
class RunState:
    """Where a run stands, apart from tensors."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches completed in the current epoch
    update: int = 0
    best_recall_at_20: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0  # of training alone, by compute_clock
    finished: bool = False


def saved_state(out: Path, description: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """What `load_state` resumes from, or None in an empty folder.

    Raises ValueError when `out` holds a run and `resume` is false, a run that was started otherwise than
    `description` says, or something that is no run.
    """
    recover_folder(out / "state")
    description_path = out / "state" / "run.json"
    if not description_path.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"out: {out} is not empty and holds no run; choose another folder")
        return None
    if not resume:
        raise ValueError(f"out: {out} holds a run already; give --resume to go on with it, or another folder")
    saved = json.loads(description_path.read_text())
    ours = json.loads(json.dumps(description))
    theirs = saved["description"]
    different = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if different:
        raise ValueError(
            f"resume: the run in {out} was started with another {', '.join(different)}; "
            "give the same ones, or another --out"
        )
    return dict(saved["state"])


def holds_state(out: Path) -> bool:
    """Whether `out` holds a state that can be gone on with: what a failed disk cut short cannot."""
    try:
        json.loads((out / "state" / "run.json").read_text())["state"]
        with safe_open(out / "state" / "state.safetensors", framework="pt"):
            return True
    except (OSError, ValueError, LookupError, SafetensorError):
        return False


def save_state(
    out: Path,
    state: RunState,
    model: TwoTower,
    optimizer: torch.optim.Optimizer,
    *,
    description: dict[str, Any],
    device: str,
) -> None:
    """Replace `out/state` at once, so that a reader finds the old one or the new one."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors["random.cpu"] = torch.get_rng_state()
    if device.startswith("cuda"):
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    record = {"description": description, "state": dataclasses.asdict(state)}

    def write(folder: Path) -> None:
        save_file(tensors, folder / "state.safetensors")
        (folder / "run.json").write_text(json.dumps(record, indent=1))

    write_folder(out / "state", write)


def load_state(
    out: Path, state: dict[str, Any], model: TwoTower, optimizer: torch.optim.Optimizer, *, device: str
) -> RunState:
    """Put model, optimiser and random state back to where `save_state` left them.   state: `saved_state`'s"""
    tensors = load_file(out / "state" / "state.safetensors")
    prefix = "model."
    model.load_state_dict(
        {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    )
    for name, parameter in model.named_parameters():
        start = f"optimizer.{name}."
        entry = {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
        if entry:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in entry.items()
            }
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and device.startswith("cuda"):
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return RunState(**state)
