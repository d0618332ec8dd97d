"""`t2diff-model`: look at a log, train models on it, evaluate and compare them."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from model.bulk.cluster import connected
from model.bulk.ranking import rank_targets_on
from model.command_options import (
    Device,
    ModelSettings,
    SplitName,
    Threads,
    choose_device,
    figure,
    load_trained_on,
    parse_settings,
    split_log,
)
from model.data.dataset import EvaluationSet, Split
from model.data.interactions import DataError, Interactions
from model.data.rules import render_report
from model.data.synthetic import generate_drift_log
from model.evaluation import metrics_of_ranks, rank_targets
from model.experiments.commands import compare_command, search_command, training_speed_command
from model.experiments.job_pool import JobError
from model.log_options import RayAddress, reads_log
from model.noise_schedule import BETA_SHAPES, NoiseSchedule, exponential_constants
from model.ranks import LostRankError, name_of_rank
from model.registry import MODELS, build_model
from model.report_command import report_command
from model.schedule_figure import plot_schedules
from model.train_command import train_command

app = typer.Typer(
    help="Train and evaluate recall models on interaction logs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
err = Console(stderr=True)


@app.command("inspect")
@reads_log
def inspect_log(
    log: Interactions,
) -> None:
    """Read a log and print its counts before and after each rule."""
    print(render_report(log.report))
    print(f"dataset id {log.fingerprint[:16]}")


@app.command("synthesize")
def synthesize(
    out: Annotated[Path, typer.Argument(help="File to write, .csv or .parquet.")],
    users: Annotated[int, typer.Option(help="Number of users.")] = 2_000,
    items: Annotated[int, typer.Option(help="Number of items.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Same seed, same log.")] = 0,
) -> None:
    """Write a made-up log in which users drift through a hidden space of interests."""
    log = generate_drift_log(num_users=users, num_items=items, seed=seed)
    log.write_event_log(out)
    print(f"wrote {len(log.timestamp):,} interactions of {users:,} users with {items:,} items to {out}")


app.command("train")(train_command)


@app.command("evaluate")
@reads_log
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder or checkpoint folder.")],
    log: Interactions,
    split: SplitName = "leave-one-out",
    part: Annotated[str, typer.Option(help="validation or test.")] = "test",
    mask_seen: Annotated[
        bool, typer.Option("--mask-seen", help="Rank only items the user has not seen.")
    ] = False,
    hide_request_time: Annotated[
        bool, typer.Option("--hide-request-time", help="Do not tell the model when the target came.")
    ] = False,
    max_users: Annotated[
        int | None, typer.Option(help="Ask an evenly spread part of the users only.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the diffusion noise.")] = 0,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
    device: Device = "auto",
    threads: Threads = 1,
    ray: RayAddress = "",
) -> None:
    """Print Recall@K and MRR@K of a checkpoint, ranking every item for each held-out behaviour."""
    import torch

    torch.set_num_threads(threads)
    place = _cpu_of_nodes(device) if ray else choose_device(device)
    trained = load_trained_on(log, checkpoint, place)
    questions = _part(split_log(log, split), part)
    with _ranker(ray, checkpoint, place, threads) as rank, Progress(console=err) as bar:
        total = min(len(questions), max_users or len(questions))
        task = bar.add_task(f"ranking {log.num_items:,} items", total=total)
        ranks = rank(
            trained.model,
            questions,
            seed=seed,
            mask_seen=mask_seen,
            hide_request_time=hide_request_time,
            max_queries=max_users,
            on_batch=lambda done: bar.update(task, completed=done),
        )
    metrics = metrics_of_ranks(ranks)
    table = Table(
        title=f"{trained.model_name}, {split} {part}, {len(ranks):,} users, {log.num_items:,} items"
    )
    for heading in ("K", "Recall@K", "MRR@K"):
        table.add_column(heading, justify="right")
    for cutoff in (2, 20, 10, 100):
        table.add_row(
            str(cutoff), figure(metrics[f"recall_at_{cutoff}"]), figure(metrics[f"mrr_at_{cutoff}"])
        )
    Console().print(table)
    if json_out is not None:
        json_out.write_text(
            json.dumps({"users": len(ranks), "part": part, "split": split, **metrics}, indent=1)
        )


@app.command("parameters")
def parameters(
    model: Annotated[str, typer.Option(help="Model: " + ", ".join(MODELS) + ".")] = "t2diff",
    items: Annotated[int, typer.Option(help="Catalogue size M.")] = 3_706,
    settings: ModelSettings = None,
) -> None:
    """Print how many parameters a model has, part by part."""
    built = build_model(model, parse_settings(settings), items)
    table = Table(title=f"{model}, {items:,} items")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    total = 0
    for name, part in built.named_children():
        count = sum(parameter.numel() for parameter in part.parameters())
        total += 0 if name == "item_table" else count
        if count:
            table.add_row(name, f"{count:,}")
    total += sum(parameter.numel() for parameter in built.parameters(recurse=False))
    table.add_row("all but item_table", f"{total:,}")
    Console().print(table)


@app.command("schedules")
def schedules(
    steps: Annotated[int, typer.Option(help="Diffusion steps T.")] = 50,
    plot: Annotated[Path | None, typer.Option(help="Also draw them to this PNG file.")] = None,
) -> None:
    """Print the β schedules and what they leave of the signal after T steps."""
    table = Table(title=f"noise schedules, T = {steps}")
    for heading in ("schedule", "β_1", "β_T", "ᾱ_T", "constants of Eq. 13"):
        table.add_column(heading)
    for name in BETA_SHAPES:
        schedule = NoiseSchedule(name, steps)
        first, last = float(schedule.betas[0]), float(schedule.betas[-1])
        constants = ""
        if name == "exp":
            a, b = exponential_constants(steps, first, last)
            constants = f"a = {a:.5f}, b = {b:.4f}"
        table.add_row(
            name, f"{first:.4f}", f"{last:.4f}", f"{float(schedule.alphas_cumprod[-1]):.5f}", constants
        )
    Console().print(table)
    if plot is not None:
        plot_schedules(plot, steps)
        print(f"drew {plot}")


app.command("compare")(compare_command)
app.command("report")(report_command)
app.command("search")(search_command)
app.command("training-speed")(training_speed_command)


def main() -> None:
    """Run the command line; wrong input is one line and exit code 2."""
    try:
        app()
    except ValueError as error:
        _complain(error)
        sys.exit(2)
    except (FloatingPointError, JobError, LostRankError) as error:
        _complain(error)
        sys.exit(3)
    except KeyboardInterrupt:
        err.print("interrupted; --resume goes on from here")
        sys.exit(130)


@contextmanager
def _ranker(ray: str, checkpoint: Path, device: str, threads: int) -> Iterator[Callable[..., np.ndarray]]:
    """What ranks the questions: the nodes of the cluster at `ray`, or this process where it is empty."""
    if not ray:
        yield functools.partial(rank_targets, device=device)
        return
    with connected(ray) as cluster:
        yield functools.partial(rank_targets_on, cluster, checkpoint, threads=threads)


def _cpu_of_nodes(device: str) -> str:
    if device not in ("auto", "cpu"):
        raise ValueError(f"device: with --ray the nodes rank on their CPUs, got {device!r}: leave it out")
    return "cpu"


def _complain(error: Exception) -> None:
    text = f"{name_of_rank(os.environ)}error: {error}"
    err.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)


def _part(split: Split, name: str) -> EvaluationSet:
    if name not in ("validation", "test"):
        raise DataError(f"part must be validation or test, got {name!r}")
    return split.validation if name == "validation" else split.test


if __name__ == "__main__":
    main()
