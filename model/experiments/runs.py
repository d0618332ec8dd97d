"""One run of a comparison: one recipe with one seed, all of it kept as files.

A run's folder is named after a digest of everything that shapes its outcome, so that a finished run is
found again by whoever asks for the same, and changed settings never meet old weights:

    train/             the trainer's own folder, which resumes by itself
    measured-1/        figures.json and ranks.safetensors (see measured_run.py); being there means finished
    error.txt          why the last attempt failed, if it did
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from model.checkpoint import recover_folder
from model.data.dataset import Split
from model.experiments.job_pool import Report
from model.training import Progress, train
from model.training_settings import TrainingSettings

MEASURED = "measured-1"
"""The number changes with what is measured: older folders are then measured again, not trained again."""

_NOT_OUTCOME = ("device", "num_threads", "save_every_updates")
_ADDED_SETTINGS = {"exclude_seen": False, "behaviour_gradient": False}
"""Settings younger than the recorded runs, and what those ran with: so set, they are not part of a digest."""

SHARE_OF_TRAINING = 0.9
"""How far a run is, for its progress bar, when training ends and measuring begins."""


@dataclass(frozen=True)
class Run:
    """One recipe under one seed.

    model_config: all of the model's settings   training: all of the trainer's, with the seed
    tuned_on: id of the training data its tuned settings were searched on, None for defaults
    """

    model: str
    variant: str
    model_config: dict[str, Any]
    training: TrainingSettings
    folder: Path
    tuned_on: str | None = None

    @property
    def spec(self) -> str:
        return f"{self.model}:{self.variant}" if self.variant else self.model

    @property
    def name(self) -> str:
        return f"{self.spec} seed {self.training.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / MEASURED / "figures.json").is_file()

    @property
    def begun(self) -> bool:
        return self.folder.exists()

    def figures(self) -> dict[str, Any]:
        """What a finished run measured: "test", "validation", and its cost."""
        return dict(json.loads((self.folder / MEASURED / "figures.json").read_text()))

    def training_state(self) -> dict[str, Any]:
        """Where training stands: epoch, best_epoch, seconds."""
        return dict(json.loads((self.folder / "train" / "state" / "run.json").read_text())["state"])

    def ranks(self, part: str, kind: str = "rank") -> np.ndarray:
        """(Q,) the rank of each target of a finished run."""
        return load_file(self.folder / MEASURED / "ranks.safetensors")[f"{part}.{kind}"]


def plan_run(
    work: Path,
    split: Split,
    *,
    model: str,
    variant: str,
    model_config: dict[str, Any],
    training: TrainingSettings,
    tuned_on: str | None = None,
) -> Run:
    """The run of a recipe on a split, in its folder under `work`."""
    shaping = {name: value for name, value in vars(training).items() if name not in _NOT_OUTCOME}
    log = split.test.interactions.fingerprint
    settings = dict(item for item in model_config.items() if item not in _ADDED_SETTINGS.items())
    outcome = json.dumps([model, settings, shaping, log, split.train.fingerprint], sort_keys=True)
    digest = hashlib.sha256(outcome.encode()).hexdigest()[:12]
    label = re.sub(r"[^A-Za-z0-9_+]+", "-", f"{model}-{variant}" if variant else model)
    folder = Path(work) / log[:8] / f"{label}-seed{training.seed}-{digest}"
    return Run(model, variant, model_config, training, folder, tuned_on)


def train_run(run: Run, split: Split, report: Report) -> None:
    """Train to the end, or on from where it stopped; its folder is the caller's alone."""
    train_folder = run.folder / "train"
    _sweep(train_folder)

    def show(progress: Progress) -> None:
        share = progress.update / max(progress.num_updates, 1)
        recall = progress.best_recall_at_20
        words = f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.3f}"
        words += f", best recall@20 {recall:.4f}" if recall is not None else ""
        report(SHARE_OF_TRAINING * min(share, 1.0), words)

    train(
        split,
        model_name=run.model,
        model_config=run.model_config,
        settings=run.training,
        out=train_folder,
        resume=True,
        on_progress=show,
    )


def as_settings(run: Run) -> dict[str, Any]:
    """What shaped a run, for results.json."""
    training = dataclasses.asdict(run.training)
    return {
        "model": run.model_config,
        "training": {name: value for name, value in training.items() if name not in (*_NOT_OUTCOME, "seed")},
        "tuned_on": run.tuned_on,
    }


def _sweep(train_folder: Path) -> None:
    """Remove what a killed writer left half done; without a state to resume from, all of it."""
    if not train_folder.exists():
        return
    for name in ("state", "checkpoint"):
        recover_folder(train_folder / name)
    if not (train_folder / "state" / "run.json").is_file():
        shutil.rmtree(train_folder)
        return
    for leftover in train_folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def alone_in(folder: Path, *, patience_seconds: float = 20.0) -> Iterator[None]:
    """Make the folder and hold its lock; the kernel gives the lock back when the process dies.

    Waits a little for a process that is just dying.   Raises ValueError when another one keeps it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience_seconds
    with (folder / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    message = f"work: another process is at work in {folder}; wait for it or stop it"
                    raise ValueError(message) from error
                time.sleep(0.1)
        yield
