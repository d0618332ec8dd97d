"""A trained model on disk: what the index builder needs, and nothing that can run code.

A checkpoint is a folder of `manifest.json`, `model.safetensors`, `item_ids.parquet` and `tuning.parquet`,
written beside its final place and renamed, so that a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from collections.abc import Sequence as Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.batch import Sequence
from model.id_column import IdColumn
from model.registry import build_model
from model.two_tower import TwoTower
from model.unfilled import Unfilled

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A model with all that must travel with it.

    item_ids: item_ids[m] has item index m + 1   popular: item indices, most popular first
    canary: a few sequences of real behaviour   tuning: more of them, for the index to be tuned on; older
    checkpoints have none   metrics: of the offline evaluation
    """

    model: TwoTower
    model_name: str
    model_config: dict[str, Any]
    item_ids: Collection[str]
    popular: np.ndarray
    canary: list[Sequence]
    metrics: dict[str, float]
    dataset_id: str
    seed: int
    tuning: list[Sequence] = field(default_factory=list)
    git_commit: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` as the folder `path`, replacing what was there only when it is complete."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "model": checkpoint.model_name,
        "model_config": checkpoint.model_config,
        "num_items": checkpoint.model.num_items,
        "metrics": checkpoint.metrics,
        "dataset_id": checkpoint.dataset_id,
        "seed": checkpoint.seed,
        "git_commit": checkpoint.git_commit,
        "settings": checkpoint.settings,
        "popular": [int(item) for item in checkpoint.popular],
        "canary": [sequence_to_json(sequence) for sequence in checkpoint.canary],
    }

    def write(folder: Path) -> None:
        weights = {name: tensor.contiguous().cpu() for name, tensor in checkpoint.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        pq.write_table(pa.table({"item_id": checkpoint.item_ids}), folder / "item_ids.parquet")
        if checkpoint.tuning:
            entries = [sequence_to_json(sequence) for sequence in checkpoint.tuning]
            pq.write_table(pa.Table.from_pylist(entries), folder / "tuning.parquet")
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))

    write_folder(path, write)


def load_checkpoint(path: Path, device: str = "cpu") -> Checkpoint:
    """Read a checkpoint, or the best one of a run folder; its model is in evaluation mode on `device`.

    Raises CheckpointError when the folder is missing, damaged or of another format.
    """
    return _read(path, device, _filled_model, lambda column: column.to_pylist())


def map_checkpoint(path: Path) -> Checkpoint:
    """The same on the CPU, held in little memory: for reading a model, not for training it.

    The weights are mapped from their file: memory holds what is read of them, as a copy that the system may
    drop. The item ids stay an Arrow column.
    """
    return _read(path, "cpu", _mapped_model, IdColumn)


def checkpoint_folder(path: Path) -> Path:
    """The checkpoint's own folder: `path`, or the best checkpoint in it where it is a run folder."""
    path = Path(path)
    recover_folder(path)
    recover_folder(path / "checkpoint")
    return path / "checkpoint" if (path / "checkpoint" / "manifest.json").is_file() else path


def _read(
    path: Path,
    device: str,
    read_model: Callable[[dict[str, Any], Path], TwoTower],
    hold_ids: Callable[[pa.ChunkedArray], Collection[str]],
) -> Checkpoint:
    path = checkpoint_folder(path)
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: {manifest_path.name} is missing; train one first")
    try:
        manifest = json.loads(manifest_path.read_text())
        if manifest["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {path} has format_version {manifest['format_version']}, this version reads "
                f"{FORMAT_VERSION}; train it again"
            )
        model = read_model(manifest, path / "model.safetensors")
        item_ids = hold_ids(pq.read_table(path / "item_ids.parquet")["item_id"])
        pa.default_memory_pool().release_unused()
        canary = [sequence_from_json(entry) for entry in manifest["canary"]]
        tuning = []
        if (path / "tuning.parquet").is_file():
            tuning = [
                sequence_from_json(entry) for entry in pq.read_table(path / "tuning.parquet").to_pylist()
            ]
    except (
        KeyError,
        TypeError,
        OSError,
        RuntimeError,
        json.JSONDecodeError,
        pa.ArrowException,
        SafetensorError,
    ) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); train it again") from error
    return Checkpoint(
        model=model.to(device).eval(),
        model_name=manifest["model"],
        model_config=manifest["model_config"],
        item_ids=item_ids,
        popular=np.array(manifest["popular"], dtype=np.int32),
        canary=canary,
        tuning=tuning,
        metrics=manifest["metrics"],
        dataset_id=manifest["dataset_id"],
        seed=manifest["seed"],
        git_commit=manifest["git_commit"],
        settings=manifest["settings"],
    )


def _filled_model(manifest: dict[str, Any], weights: Path) -> TwoTower:
    model = build_model(manifest["model"], manifest["model_config"], manifest["num_items"])
    model.load_state_dict(load_file(weights))
    return model


def _mapped_model(manifest: dict[str, Any], weights: Path) -> TwoTower:
    with Unfilled():
        model = build_model(manifest["model"], manifest["model_config"], manifest["num_items"])
    model.load_state_dict(load_file(weights), assign=True)
    return model


def sequence_to_json(sequence: Sequence) -> dict[str, Any]:
    """A sequence as plain lists and integers."""
    return {
        "item_index": [int(item) for item in sequence.item_index],
        "timestamp": [int(time) for time in sequence.timestamp],
        "request_time": int(sequence.request_time),
    }


def sequence_from_json(entry: dict[str, Any]) -> Sequence:
    """The inverse of `sequence_to_json`."""
    return Sequence(
        np.array(entry["item_index"], dtype=np.int64),
        np.array(entry["timestamp"], dtype=np.int64),
        int(entry["request_time"]),
    )


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `path`, flush it to disk and move it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.parent / f".{path.name}-{uuid.uuid4().hex}"  # mkdtemp would make it unreadable to others
    staging.mkdir()
    try:
        write(staging)
        for file in staging.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        if path.exists():
            retired = path.parent / f".{path.name}-old-{uuid.uuid4().hex}"
            os.replace(path, retired)
            os.replace(staging, path)
            shutil.rmtree(retired)
        else:
            os.replace(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def recover_folder(path: Path) -> None:
    """Bring back what `path` held when a kill fell between the two moves of `write_folder`."""
    for retired in path.parent.glob(f".{path.name}-old-*"):
        if not path.exists():
            os.replace(retired, path)


def current_git_commit() -> str | None:
    """The commit checked out, with `-dirty` when the tree differs from it; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
