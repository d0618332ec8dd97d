"""`t2diff-model compare`, `t2diff-model search` and `t2diff-model training-speed`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from model.command_options import Device, SplitName, Threads, choose_device, split_log
from model.data.interactions import Interactions
from model.data.time_ties import shuffle_time_ties
from model.experiments.comparison import compare, parse_models, parse_seeds, plan_comparison
from model.experiments.job_pool import JobError
from model.experiments.job_progress import JobProgress
from model.experiments.recorded_runs import recorded_entries, runs_to_do
from model.experiments.results import read_results
from model.experiments.runs import Run
from model.experiments.search import OBJECTIVE, best_trial, read_records, read_tuned, search
from model.experiments.training_speed import LOOPS, training_speed
from model.experiments.variants import read_variants, resolve
from model.log_options import reads_log
from model.registry import MODELS
from model.training_settings import TrainingSettings

err = Console(stderr=True)
COUNTED = ("popularity", "markov", "item_knn")

Jobs = Annotated[int, typer.Option(help="Runs at a time, each in a process of its own.")]
Variants = Annotated[
    Path | None, typer.Option(help="TOML file of variants of one's own, beside the built-in ones.")
]
ShuffleTies = Annotated[
    int | None, typer.Option(help="Put rows of equal time in a random order with this seed before splitting.")
]


@reads_log
def compare_command(
    context: typer.Context,
    log: Interactions,
    models: Annotated[
        str,
        typer.Option(help="Specs, by comma: MODEL, MODEL:VARIANT, MODEL:A+B, all; SPEC@N for N seeds."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results; it may hold those of other data.")],
    work: Annotated[Path, typer.Option(help="Folder of runs and checkpoints, outside the repository.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the specs that do not say: 0,1 or 0-4.")] = "0,1",
    resume: Annotated[bool, typer.Option("--resume", help="Go on; finished runs are kept.")] = False,
    recorded: Annotated[
        bool,
        typer.Option(
            "--recorded",
            help="A run that WORK lacks and the results in OUT hold counts as finished; its figures have a "
            "part in means, not in paired tests.",
        ),
    ] = False,
    dataset: Annotated[str | None, typer.Option(help="Name of the data; left out: the file's.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Spec tested against every other; left out: the first one.")
    ] = None,
    tuned: Annotated[
        list[Path] | None,
        typer.Option(
            help="Record of a search (the best trial's settings are used), or results.json of a comparison."
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="Validation metric that chooses the best trial.")
    ] = OBJECTIVE,
    variants: Variants = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Most epochs of every run whose variant does not say; left out: tuned or default."),
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Stop a run after so many epochs without a better one.")
    ] = TrainingSettings.patience,
    split: SplitName = "leave-one-out",
    shuffle_ties: ShuffleTies = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only list the runs and where they stand.")] = False,
    jobs: Jobs = os.cpu_count() or 1,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Train and measure models side by side; leave results.json, table.md and pictures in OUT."""
    split_of_log = split_log(_in_order(log, shuffle_ties), split)
    specs = parse_models(models, parse_seeds(seeds))
    reference = next(iter(specs)) if reference is None else reference
    if reference not in specs:
        raise ValueError(f"reference must be one of the compared {', '.join(specs)}, got {reference!r}")
    runs = plan_comparison(
        split_of_log,
        work,
        specs,
        base=TrainingSettings(patience=patience, device=choose_device(device), num_threads=threads),
        epochs=epochs,
        tuned=read_tuned(tuned or [], objective),
        own=None if variants is None else read_variants(variants),
    )
    name = dataset or _name_of_data(context)
    name += "" if shuffle_ties is None else ", ties shuffled"
    owner = {"dataset": name, "split": split_of_log.name}
    known = recorded_entries(read_results(out)[0], runs, owner) if recorded else []
    if plan:
        _print_plan(runs, known)
        return
    kinds = {run.name: run.spec for run in runs_to_do(runs, known)}
    err.print(f"{name}: {len(runs)} runs, {len(runs) - len(kinds)} of them finished", markup=False)
    with JobProgress(kinds, num_processes=jobs, console=err) as progress:
        failed = compare(
            split_of_log,
            runs,
            out,
            dataset=name,
            reference=reference,
            num_processes=jobs,
            resume=resume,
            recorded=known,
            on_report=progress.report,
            on_end=progress.ended,
        )
    print(f"wrote {out / 'table.md'}")
    _raise_for(failed, f"see error.txt in each one's folder under {work}")


@reads_log
def search_command(
    log: Interactions,
    model: Annotated[str, typer.Option(help="Spec whose settings are searched: MODEL or MODEL:VARIANT.")],
    out: Annotated[Path, typer.Option(help="Record to write, one line of JSON a trial.")],
    trials: Annotated[int, typer.Option(help="Settings to try; the first are the defaults.")] = 20,
    epochs: Annotated[int, typer.Option(help="Most epochs of a trial.")] = 20,
    patience: Annotated[
        int, typer.Option(help="Stop a trial after so many epochs without a better one.")
    ] = 3,
    work: Annotated[Path | None, typer.Option(help="Folder of running trials; left out: beside OUT.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search.")] = False,
    objective: Annotated[str, typer.Option(help="Validation metric that chooses the best.")] = OBJECTIVE,
    variants: Variants = None,
    split: SplitName = "leave-one-out",
    shuffle_ties: ShuffleTies = None,
    seed: Annotated[int, typer.Option(help="Of the trials' settings and of their training.")] = 0,
    jobs: Jobs = os.cpu_count() or 1,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Try random settings of a model; only the validation part is asked."""
    own = None if variants is None else read_variants(variants)
    resolve(model, own)
    best_trial([{"validation": {objective: 0.0}}], objective)  # a wrong name is known before the first trial
    recorded = {record["trial"] for record in read_records(out)} if resume and out.exists() else set()
    kinds = {f"trial {number}": model for number in range(trials) if number not in recorded}
    with JobProgress(kinds, num_processes=jobs, console=err) as progress:
        records, failed = search(
            split_log(_in_order(log, shuffle_ties), split),
            out,
            work or out.with_name(f"{out.name}.work"),
            spec=model,
            trials=trials,
            base=TrainingSettings(
                epochs=epochs, patience=patience, seed=seed, device=choose_device(device), num_threads=threads
            ),
            own=own,
            num_processes=jobs,
            resume=resume,
            on_report=progress.report,
            on_end=progress.ended,
        )
    if records:
        _print_best(records, objective)
    _raise_for(failed, "give --resume to try them again")


def _in_order(log: Interactions, shuffle_ties: int | None) -> Interactions:
    return log if shuffle_ties is None else shuffle_time_ties(log, shuffle_ties)


def _name_of_data(context: typer.Context) -> str:
    """The first --data of the command line, without its folders and suffix."""
    first = Path(context.params["data"][0])
    return first.resolve().name if first.is_dir() else first.stem


def _print_plan(runs: list[Run], recorded: list[dict[str, Any]]) -> None:
    names = {entry["run"] for entry in recorded}
    table = Table(title=f"{len(runs)} runs")
    for heading in ("run", "most epochs", "state"):
        table.add_column(heading)
    for run in runs:
        state = "finished" if run.finished else "begun" if run.begun else "to do"
        state = "recorded" if run.folder.name in names else state
        table.add_row(run.name, str(run.training.epochs), state)
    Console().print(table)


def _print_best(records: list[dict[str, Any]], objective: str) -> None:
    best = best_trial(records, objective)
    settings = {**best["settings"]["model"], **best["settings"]["training"]}
    print(f"{len(records)} trials; best by validation {objective}: trial {best['trial']}")
    print("  ".join(f"{name} {value:.4f}" for name, value in best["validation"].items()))
    print("  ".join(f"{name}={value}" for name, value in settings.items()) or "the defaults")


def _raise_for(failed: dict[str, str], remedy: str) -> None:
    if failed:
        raise JobError(f"{len(failed)} failed ({', '.join(failed)}); {remedy}")


@reads_log
def training_speed_command(
    log: Interactions,
    models: Annotated[str, typer.Option(help="Models, by comma; left out: all that are trained.")] = "",
    updates: Annotated[int, typer.Option(help="Updates in each of three rounds.")] = 10,
    threads: Threads = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
) -> None:
    """Targets a second of the trainer and of two straightforward loops over the same models."""
    torch.set_num_threads(threads)
    split = split_log(log, "leave-one-out")
    asked = [name.strip() for name in models.split(",") if name.strip()]
    table = Table("model", *(f"{loop}, targets/s" for loop in LOOPS), "over same_windows", "over one_target")
    figures: dict[str, dict[str, float]] = {}
    for name in asked or [name for name in MODELS if name not in COUNTED]:
        speeds = training_speed(split, name, updates=updates)
        ratios = [speeds["trainer"] / speeds[loop] for loop in LOOPS[1:]]
        figures[name] = {**speeds, **{f"over_{loop}": r for loop, r in zip(LOOPS[1:], ratios, strict=True)}}
        table.add_row(
            name, *(f"{speeds[loop]:,.0f}" for loop in LOOPS), *(f"{ratio:.2f}x" for ratio in ratios)
        )
        err.print(f"{name} done")
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1))
