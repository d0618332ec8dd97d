"""One training loop for every model: resumable to the bit, watched on validation, stopped early.

A run is a folder: `checkpoint/` the best model so far (what the index builder reads), `state/` where
the run stands (weights, optimiser, random state: enough to go on as if never interrupted),
`tensorboard/` its curves.

Several processes train as one would (`model.ranks`): each computes its rows of every batch and all make the
same updates. The first one alone evaluates and writes, and what it finds out is told to the others; so a
run's folder does not say how many wrote it, and any number may go on with it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.best_checkpoint import best_checkpoint
from model.checkpoint import CheckpointError, save_checkpoint
from model.compute_clock import compute_clock
from model.counted import CountedTower
from model.data.dataset import Split
from model.data.windows import TrainingWindows
from model.evaluation import metrics_of_ranks, rank_targets
from model.ranks import ALONE, Ranks
from model.registry import build_model, complete_config
from model.run_state import RunState, load_state, save_state, saved_state
from model.sharded_table import assembled, check_can_shard, clip_gradients, shard_table
from model.split_loss import SplitLoss
from model.training_settings import TrainingSettings, learning_rate_at
from model.two_tower import TwoTower
from model.warm_start import WarmStart, check_items_continue, continue_from, item_tensors


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


def train(
    split: Split,
    *,
    model_name: str,
    model_config: dict[str, Any],
    settings: TrainingSettings,
    out: Path,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    warm_start: WarmStart | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Train a model and leave the best one in `out/checkpoint`.

    warm_start: the model to go on from, whose items are the first of the split's, in their order
    ranks: this process among those that call this with the same arguments and see the same `out`; the first
    one alone calls `on_progress`
    Returns its metrics. Raises ValueError when `out` holds a run and `resume` is false, when resuming with
    other settings than the run was started with, or for a model that several processes cannot train.
    """
    run = _Run(split, model_name, model_config, settings, Path(out), resume, warm_start, ranks)
    return run.go(on_progress if ranks.is_first else None)


class _Run:
    def __init__(
        self,
        split: Split,
        model_name: str,
        model_config: dict[str, Any],
        settings: TrainingSettings,
        out: Path,
        resume: bool,
        warm_start: WarmStart | None,
        ranks: Ranks,
    ) -> None:
        torch.set_num_threads(settings.num_threads)
        torch.manual_seed(settings.seed)
        self.split, self.settings, self.out, self.ranks = split, settings, out, ranks
        self.model_name = model_name
        self.model_config = dataclasses.asdict(complete_config(model_name, model_config))
        self.model: TwoTower = build_model(model_name, self.model_config, len(split.train.item_ids))
        if ranks.count > 1 and not self.model.splits_batches:
            raise ValueError(
                f"model: {model_name} trains in one process, got {ranks.count}; start it without torchrun"
            )
        if settings.shard_items:
            check_can_shard(self.model, ranks)
        if warm_start is not None:
            check_items_continue(split.train.item_ids, warm_start)
            continue_from(self.model, warm_start, item_tensors(model_name, self.model_config))
        self.model.observe_item_counts(torch.from_numpy(self.split.train.item_counts()))
        self.model.to("cpu" if settings.shard_items else settings.device)
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
        self.description: dict[str, Any] = {
            "model": model_name,
            "model_config": self.model_config,
            "settings": {
                key: value
                for key, value in dataclasses.asdict(settings).items()
                if key not in ("device", "num_threads", "save_every_updates", "shard_items")
            },
            "dataset_id": split.train.fingerprint,
            "split": split.name,
        }
        if warm_start is not None:
            self.description["continued_from"] = warm_start.source
        self._begin_or_resume(resume)
        self.table = shard_table(self.model, self.optimizer, ranks) if settings.shard_items else None
        self.split_loss = SplitLoss(self.model, ranks, apart=self.table.weight if self.table else None)

    def _begin_or_resume(self, resume: bool) -> None:
        """The first process begins a run or finds one to resume; the others go on from what it left."""
        if not self.ranks.is_first:
            self.ranks.wait_for_all()
        saved = saved_state(self.out, self.description, resume=resume or not self.ranks.is_first)
        if saved is not None:
            self.state = load_state(self.out, saved, self.model, self.optimizer, device=self.settings.device)
        elif self.ranks.is_first:
            self._write_state()
        else:
            raise ValueError(f"out: {self.out} is empty here; all processes of a run must see one folder")
        if self.ranks.is_first:
            self.ranks.wait_for_all()

    def go(self, on_progress: Callable[[Progress], None] | None) -> dict[str, float]:
        writer = None
        if self.ranks.is_first:
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
        if writer is not None:
            writer.close()
        if not self.state.finished:
            self.state.finished = True
            self._save_state()
        return self.ranks.from_first(self._load_best_metrics)

    def _done(self) -> bool:
        waited = self.state.epoch - self.state.best_epoch
        exhausted = self.state.epoch > 0 and waited >= self.settings.patience and self._has_begun_to_learn()
        return self.state.epoch >= self.settings.epochs or exhausted or self.state.finished

    def _has_begun_to_learn(self) -> bool:
        """Below several times chance one epoch's Recall tells nothing of the next one's.

        Where items are many and seldom seen, the first epochs stay there before it rises.
        """
        chance = 20 / len(self.split.train.item_ids)
        return self.state.best_recall_at_20 > min(5 * chance, 0.02)

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
            if writer is not None and self.state.update % 20 == 0:
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
            share = self.split_loss.share(batch)
        loss = self.ranks.add_up(share.detach())
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss.item()} at update {self.state.update}; lower learning_rate "
                f"(now {self.settings.learning_rate}); the last good state is in {self.out / 'state'}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.split_loss.backward(share)
        if self.table is None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_gradient_norm)
        else:
            clip_gradients(self.model.parameters(), self.settings.max_gradient_norm, self.table)
        self.optimizer.step()
        return float(loss.item())

    def _end_epoch(self, writer: Any) -> float:
        self.state.epoch += 1
        self.state.batch = 0
        self._unite_what_was_seen()
        metrics = self._validate() if self.table else self.ranks.from_first(self._validate)
        for name, value in metrics.items() if writer is not None else ():
            writer.add_scalar(f"validation/{name}", value, self.state.update)
        recall = metrics["recall_at_20"]
        if recall > self.state.best_recall_at_20:
            self.state.best_recall_at_20 = recall
            self.state.best_epoch = self.state.epoch
            with self._whole_model():
                if self.ranks.is_first:
                    self._save_best(metrics)
        self._save_state()
        return recall

    def _validate(self) -> dict[str, float]:
        places = rank_targets(
            self.model,
            self.split.validation,
            device=self.settings.device,
            max_queries=self.settings.validation_users,
            rank=self.table.rank_of if self.table else None,
        )
        return metrics_of_ranks(places)

    def _unite_what_was_seen(self) -> None:
        """Models note in flags what training has shown them; each process has seen its part."""
        for buffer in self.model.buffers():
            if buffer.dtype == torch.bool:
                self.ranks.unite(buffer)

    # --- files ----------------------------------------------------------------------------------

    def _save_state(self) -> None:
        self._unite_what_was_seen()
        with self._whole_model():
            if self.ranks.is_first:
                self._write_state()

    def _whole_model(self) -> AbstractContextManager[None]:
        """In the first process the model as files hold it; all come here together."""
        return assembled(self.model, self.optimizer, self.table) if self.table else nullcontext()

    def _write_state(self) -> None:
        save_state(
            self.out,
            self.state,
            self.model,
            self.optimizer,
            description=self.description,
            device=self.settings.device,
        )

    def _save_best(self, metrics: dict[str, float]) -> None:
        best = best_checkpoint(
            self.model,
            self.split,
            model_name=self.model_name,
            model_config=self.model_config,
            metrics={f"validation/{name}": value for name, value in metrics.items()},
            settings={
                **dataclasses.asdict(self.settings),
                "split": self.split.name,
                "epoch": self.state.epoch,
                "train_seconds": round(self.state.seconds, 1),
                "continued_from": self.description.get("continued_from"),
            },
        )
        save_checkpoint(self.out / "checkpoint", best)

    def _load_best_metrics(self) -> dict[str, float]:
        manifest = self.out / "checkpoint" / "manifest.json"
        if not manifest.exists():
            raise CheckpointError(f"{self.out} ended without a checkpoint; remove it and train again")
        return dict(json.loads(manifest.read_text())["metrics"])


def _device_has_bf16(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.is_bf16_supported()
