"""The command `t2diff-model train`: one model, one run, its progress on stderr."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.command_options import (
    Device,
    ModelSettings,
    SplitName,
    Threads,
    choose_device,
    figure,
    parse_settings,
    split_log,
)
from model.continued import continue_checkpoint
from model.data.dataset import Split
from model.data.interactions import Interactions
from model.data.rules import render_report
from model.log_options import reads_log
from model.ranks import Ranks, join_ranks
from model.registry import MODELS, complete_config
from model.training import Progress as TrainingProgress
from model.training import train
from model.training_settings import TrainingSettings

err = Console(stderr=True)


@reads_log
def train_command(
    log: Interactions,
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    model: Annotated[str, typer.Option(help="Model to train: " + ", ".join(MODELS) + ".")] = "t2diff",
    settings: ModelSettings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    continue_from: Annotated[
        Path | None,
        typer.Option(help="Begin with the weights of this run or checkpoint; new items get rows."),
    ] = None,
    split: SplitName = "leave-one-out",
    epochs: Annotated[int, typer.Option(help="Most epochs; early stopping may end before.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Windows in a batch.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.0,
    targets_per_window: Annotated[
        int | None,
        typer.Option(help="Supervised positions at a window's end; left out: all (dense), 1: the paper's."),
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better Recall@20, if it is above chance.")
    ] = 3,
    validation_users: Annotated[int, typer.Option(help="Users asked after each epoch.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    shard_items: Annotated[
        bool,
        typer.Option("--shard-items", help="Under torchrun: spread the item table over the processes."),
    ] = False,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Train a model; its best checkpoint is left in OUT/checkpoint.

    In several processes, to the same losses: torchrun --standalone --nproc-per-node 2 --no-python
    t2diff-model train, with the same options. Each batch is split over them (docs/scaling.md).
    """
    config = dataclasses.asdict(complete_config(model, parse_settings(settings)))
    warm_start = None
    if continue_from is not None:
        log, warm_start = continue_checkpoint(log, continue_from, model_name=model, model_config=config)
    training = TrainingSettings(
        epochs=epochs,
        batch_size=batch_size,
        targets_per_window=targets_per_window,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        patience=patience,
        validation_users=validation_users,
        seed=seed,
        device=choose_device(device),
        num_threads=threads,
        shard_items=shard_items,
    )
    with join_ranks(os.environ, training.device) as ranks:
        if ranks.is_first:
            err.print(render_report(log.report))
        metrics = _train_with_a_bar(
            split_log(log, split),
            model_name=model,
            model_config=config,
            settings=training,
            out=out,
            resume=resume,
            warm_start=warm_start,
            ranks=ranks,
        )
    if ranks.is_first:
        print(f"trained {model}: checkpoint {out / 'checkpoint'}")
        print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def _train_with_a_bar(
    split: Split, *, settings: TrainingSettings, ranks: Ranks, **given: Any
) -> dict[str, float]:
    """`train`, whose first process shows how far it is."""
    with Progress(
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  recall@20 {task.fields[recall]} (best {task.fields[best]})"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=True, compact=True),
        console=err,
        disable=not ranks.is_first,
    ) as bar:
        epochs = settings.epochs
        task = bar.add_task("", total=None, epoch=0, epochs=epochs, loss="-", recall="-", best="-")

        def show(progress: TrainingProgress) -> None:
            if progress.epoch_ended:  # a line that stays, for logs without a terminal
                bar.console.print(
                    f"epoch {progress.epoch}/{epochs}: loss {progress.loss:.4f}, "
                    f"recall@20 {figure(progress.recall_at_20)} (best {figure(progress.best_recall_at_20)})"
                )
            bar.update(
                task,
                total=progress.num_updates,
                completed=progress.update,
                epoch=progress.epoch,
                loss=f"{progress.loss:.3f}",
                recall=figure(progress.recall_at_20),
                best=figure(progress.best_recall_at_20),
            )

        return train(split, settings=settings, ranks=ranks, on_progress=show, **given)
