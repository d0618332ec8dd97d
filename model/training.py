"""One training loop for every model: resumable to the bit, watched on validation, stopped early.

A run is a folder: `checkpoint/` the best model so far (what the index builder reads), `state/` where
the run stands (weights, optimiser, random state: enough to go on as if never interrupted),
`tensorboard/` its curves.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from model.batch import Sequence
from model.checkpoint import (
    Checkpoint,
    CheckpointError,
    current_git_commit,
    recover_folder,
    save_checkpoint,
    write_folder,
)
from model.compute_clock import compute_clock
from model.counted import CountedTower
from model.data.dataset import Split
from model.data.windows import TrainingWindows
from model.evaluation import metrics_of_ranks, rank_targets
from model.registry import build_model, complete_config
from model.two_tower import TwoTower

NUM_POPULAR = 1_000
NUM_CANARIES = 8
NUM_TUNING = 256
"""Users on whom the index is tuned and measured. Embeddings of one user after each behaviour are alike: those
of 8 users tell little of others, however many they are."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; recorded with the checkpoint."""

    epochs: int = 20
    batch_size: int = 16  # windows
    targets_per_window: int | None = None  # None: every position of a window (dense)
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup_updates: int = 100
    max_gradient_norm: float = 1.0
    patience: int = 3  # validations without a better Recall@20 before stopping
    validation_users: int = 2_000
    save_every_updates: int = 200
    seed: int = 0
    device: str = "cpu"
    num_threads: int = 1


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows."""

    epoch: int
    epochs: int
    update: int
    num_updates: int
    loss: float
    recall_at_20: float | None
    best_recall_at_20: float | None
    epoch_ended: bool = False


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


def train(
    split: Split,
    *,
    model_name: str,
    model_config: dict[str, Any],
    settings: TrainingSettings,
    out: Path,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, float]:
    """Train a model and leave the best one in `out/checkpoint`.

    Returns its metrics. Raises ValueError when `out` holds a run and `resume` is false, or when
    resuming with other settings than the run was started with.
    """
    return _Run(split, model_name, model_config, settings, Path(out), resume).go(on_progress)


def learning_rate_at(update: int, num_updates: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then linear decay to a hundredth."""
    warmup = min(settings.warmup_updates, max(num_updates // 10, 1))
    if update < warmup:
        return settings.learning_rate * (update + 1) / warmup
    share_left = (num_updates - update) / max(num_updates - warmup, 1)
    return settings.learning_rate * max(share_left, 0.01)


class _Run:
    def __init__(
        self,
        split: Split,
        model_name: str,
        model_config: dict[str, Any],
        settings: TrainingSettings,
        out: Path,
        resume: bool,
    ) -> None:
        torch.set_num_threads(settings.num_threads)
        torch.manual_seed(settings.seed)
        self.split, self.settings, self.out = split, settings, out
        self.model_name = model_name
        self.model_config = dataclasses.asdict(complete_config(model_name, model_config))
        self.model: TwoTower = build_model(model_name, self.model_config, len(split.train.item_ids))
        self.model.observe_item_counts(torch.from_numpy(self._item_counts()))
        self.model.to(settings.device)
        self.windows = TrainingWindows(
            split.train,
            max_length=self.model.max_length,
            targets_per_window=settings.targets_per_window or self.model.max_length,
        )
        self.optimizer = torch.optim.AdamW(
            [{"params": list(self.model.parameters())}],  # of a counted model, none
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.state = RunState()
        self.clock = compute_clock(settings.device)
        self.description = {
            "model": model_name,
            "model_config": self.model_config,
            "settings": {
                key: value
                for key, value in dataclasses.asdict(settings).items()
                if key not in ("device", "num_threads", "save_every_updates")
            },
            "dataset_id": split.train.fingerprint,
            "split": split.name,
        }
        self._prepare_folder(resume)

    def go(self, on_progress: Callable[[Progress], None] | None) -> dict[str, float]:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.state.update or None)
        recall = self.state.best_recall_at_20 if self.state.epoch else None
        if isinstance(self.model, CountedTower) and not self._done():
            began = self.clock()
            self.model.fit(self.split.train)
            self.state.seconds = self.clock() - began
            self._end_epoch(writer)
            self.state.finished = True
            self._save_state()
        while not self._done():
            recall = self._epoch(writer, on_progress, recall)
        writer.close()
        if not self.state.finished:
            self.state.finished = True
            self._save_state()
        return self._load_best_metrics()

    def _done(self) -> bool:
        waited = self.state.epoch - self.state.best_epoch
        exhausted = self.state.epoch > 0 and waited >= self.settings.patience
        return self.state.epoch >= self.settings.epochs or exhausted or self.state.finished

    def _epoch(
        self, writer: Any, on_progress: Callable[[Progress], None] | None, recall: float | None
    ) -> float:
        batches = self.windows.epoch(
            self.settings.seed, self.state.epoch, batch_size=self.settings.batch_size
        )
        # the cuts are random, so epochs differ a little in windows; the first one's count serves
        updates_per_epoch = len(
            self.windows.epoch(self.settings.seed, 0, batch_size=self.settings.batch_size)
        )
        num_updates = updates_per_epoch * self.settings.epochs
        loss_sum, loss_count = 0.0, 0

        def report(recall: float | None, *, epoch_ended: bool = False) -> None:
            if on_progress is None:
                return
            best = self.state.best_recall_at_20
            on_progress(
                Progress(
                    epoch=self.state.epoch if epoch_ended else self.state.epoch + 1,
                    epochs=self.settings.epochs,
                    update=self.state.update,
                    num_updates=num_updates,
                    loss=loss_sum / max(loss_count, 1),
                    recall_at_20=recall,
                    best_recall_at_20=best if best >= 0 else None,
                    epoch_ended=epoch_ended,
                )
            )

        self.model.train()
        while self.state.batch < len(batches):
            began = self.clock()
            loss = self._update(batches[self.state.batch], num_updates)
            self.state.seconds += self.clock() - began
            loss_sum, loss_count = loss_sum + loss, loss_count + 1
            self.state.batch += 1
            self.state.update += 1
            if self.state.update % 20 == 0:
                writer.add_scalar("loss", loss, self.state.update)
            report(recall)
            if self.state.update % self.settings.save_every_updates == 0 and self.state.batch < len(batches):
                self._save_state()
        recall = self._end_epoch(writer)
        report(recall, epoch_ended=True)
        return recall

    def _update(self, windows: np.ndarray, num_updates: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.state.update, num_updates, self.settings)
        batch = self.windows.batch(windows).to(self.settings.device)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=_device_has_bf16(self.settings.device)):
            loss = self.model.training_loss(batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} at update {self.state.update}; lower learning_rate "
                f"(now {self.settings.learning_rate}); the last good state is in {self.out / 'state'}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_gradient_norm)
        self.optimizer.step()
        return float(loss.item())

    def _end_epoch(self, writer: Any) -> float:
        self.state.epoch += 1
        self.state.batch = 0
        ranks = rank_targets(
            self.model,
            self.split.validation,
            device=self.settings.device,
            max_queries=self.settings.validation_users,
        )
        metrics = metrics_of_ranks(ranks)
        for name, value in metrics.items():
            writer.add_scalar(f"validation/{name}", value, self.state.update)
        recall = metrics["recall_at_20"]
        if recall > self.state.best_recall_at_20:
            self.state.best_recall_at_20 = recall
            self.state.best_epoch = self.state.epoch
            self._save_best(metrics)
        self._save_state()
        return recall

    # --- files ----------------------------------------------------------------------------------

    def _prepare_folder(self, resume: bool) -> None:
        recover_folder(self.out / "state")
        description_path = self.out / "state" / "run.json"
        if not description_path.exists():
            if self.out.exists() and any(self.out.iterdir()):
                raise ValueError(f"out: {self.out} is not empty and holds no run; choose another folder")
            self._save_state()
            return
        if not resume:
            raise ValueError(
                f"out: {self.out} holds a run already; give --resume to go on with it, or another folder"
            )
        saved = json.loads(description_path.read_text())
        ours = json.loads(json.dumps(self.description))
        different = [key for key in ours if saved["description"][key] != ours[key]]
        if different:
            raise ValueError(
                f"resume: the run in {self.out} was started with another {', '.join(different)}; "
                "give the same ones, or another --out"
            )
        self._load_state(saved["state"])

    def _save_state(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["random.cpu"] = torch.get_rng_state()
        if self.settings.device.startswith("cuda"):
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        record = {"description": self.description, "state": dataclasses.asdict(self.state)}

        def write(folder: Path) -> None:
            save_file(tensors, folder / "state.safetensors")
            (folder / "run.json").write_text(json.dumps(record, indent=1))

        write_folder(self.out / "state", write)

    def _load_state(self, state: dict[str, Any]) -> None:
        tensors = load_file(self.out / "state" / "state.safetensors")
        prefix = "model."
        self.model.load_state_dict(
            {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
        for name, parameter in self.model.named_parameters():
            start = f"optimizer.{name}."
            entry = {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
            if entry:
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in entry.items()
                }
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.settings.device.startswith("cuda"):
            torch.cuda.set_rng_state(tensors["random.cuda"])
        self.state = RunState(**state)

    def _save_best(self, metrics: dict[str, float]) -> None:
        save_checkpoint(
            self.out / "checkpoint",
            Checkpoint(
                model=self.model,
                model_name=self.model_name,
                model_config=self.model_config,
                item_ids=self.split.train.item_ids,
                popular=self._popular(),
                canary=self._sequences(NUM_CANARIES),
                tuning=self._sequences(NUM_TUNING),
                metrics={f"validation/{name}": value for name, value in metrics.items()},
                dataset_id=self.split.train.fingerprint,
                seed=self.settings.seed,
                git_commit=current_git_commit(),
                settings={
                    **dataclasses.asdict(self.settings),
                    "split": self.split.name,
                    "epoch": self.state.epoch,
                    "train_seconds": round(self.state.seconds, 1),
                },
            ),
        )

    def _load_best_metrics(self) -> dict[str, float]:
        manifest = self.out / "checkpoint" / "manifest.json"
        if not manifest.exists():
            raise CheckpointError(f"{self.out} ended without a checkpoint; remove it and train again")
        return dict(json.loads(manifest.read_text())["metrics"])

    def _item_counts(self) -> np.ndarray:
        """(M,) how often each item occurs in training."""
        return np.bincount(self.split.train.item_index, minlength=len(self.split.train.item_ids) + 1)[1:]

    def _popular(self) -> np.ndarray:
        counts = self._item_counts()
        order = np.argsort(-counts, kind="stable")[:NUM_POPULAR]
        return (order + 1).astype(np.int32)

    def _sequences(self, count: int) -> list[Sequence]:
        """Of `count` validation users, or all, evenly spread."""
        chosen = np.linspace(0, len(self.split.validation) - 1, count).astype(int)
        sequences = [self.split.validation.sequence(int(query)) for query in np.unique(chosen)]
        length = self.model.max_length
        return [
            Sequence(entry.item_index[-length:], entry.timestamp[-length:], entry.request_time)
            for entry in sequences
        ]


def _device_has_bf16(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.is_bf16_supported()
