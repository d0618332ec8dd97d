"""Random search on the validation part, with the same budget for every model; every trial is recorded.

The record is one line of JSON a trial, appended when the trial ends. Which settings a trial has depends
on the search's seed and the trial's number alone, so an interrupted search goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load_checkpoint, write_folder
from model.data.dataset import Split
from model.evaluation import metric_names, metrics_of_ranks, rank_targets
from model.experiments.job_pool import Report, run_jobs
from model.experiments.markdown_cells import spec_of
from model.experiments.runs import Run, alone_in, plan_run, train_run
from model.experiments.search_space import draw_settings
from model.experiments.variants import VariantTable, resolve
from model.registry import complete_config
from model.training_settings import TrainingSettings

OBJECTIVE = "recall_at_20"


@dataclass(frozen=True)
class Tuned:
    """The settings of the best trial; `dataset_id` is of the training data it was found on."""

    model: dict[str, Any]
    training: dict[str, Any]
    dataset_id: str


@dataclass(frozen=True)
class Search:
    """A search's identity: what `--resume` must find unchanged."""

    spec: str
    epochs: int
    seed: int
    dataset_id: str
    split: str


def search(
    split: Split,
    out: Path,
    work: Path,
    *,
    spec: str,
    trials: int,
    base: TrainingSettings,
    own: VariantTable | None = None,
    num_processes: int = 1,
    resume: bool = False,
    on_report: Callable[[str, float, str], None] | None = None,
    on_end: Callable[[str, str | None], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run the trials that `out` lacks.

    base: what a trial does not choose: epochs, patience, seed, device   own: of `variants.read_variants`
    -> the record of every trial, in order; traceback of each that failed, by its name
    Raises ValueError when `out` exists and `resume` is false, or holds another search.
    """
    model, variant, fixed = resolve(spec, own)
    identity = Search(spec, base.epochs, base.seed, split.train.fingerprint, split.name)
    done = _prepare(Path(out), identity, resume)
    runs: dict[str, tuple[int, dict[str, Any], Run]] = {}
    for trial in range(trials):
        drawn_model, drawn_training = draw_settings(model, trial, base.seed)
        config = dataclasses.asdict(complete_config(model, {**drawn_model, **fixed.model}))
        training = dataclasses.replace(base, **{**drawn_training, **fixed.training})
        run = plan_run(work, split, model=model, variant=variant, model_config=config, training=training)
        if trial in done:
            shutil.rmtree(run.folder, ignore_errors=True)  # killed between its record and its removal
        else:
            runs[f"trial {trial}"] = (trial, {"model": drawn_model, "training": drawn_training}, run)

    def ended(name: str, why: str | None) -> None:
        if why is None:
            trial, settings, run = runs[name]
            found = json.loads((run.folder / "trial" / "trial.json").read_text())
            done[trial] = {**dataclasses.asdict(identity), "trial": trial, "settings": settings, **found}
            _append(Path(out), done[trial])
            shutil.rmtree(run.folder)
        if on_end is not None:
            on_end(name, why)

    failed = run_jobs(
        carry_out_trial,
        {name: (run, split) for name, (_, _, run) in runs.items()},
        num_processes=num_processes,
        on_report=on_report,
        on_end=ended,
    )
    return [done[trial] for trial in sorted(done)], failed


def carry_out_trial(run: Run, split: Split, report: Report) -> None:
    """Train, then rank the whole validation part with the best checkpoint.   Jobs call it."""
    with alone_in(run.folder):
        if (run.folder / "trial" / "trial.json").is_file():
            return
        began = time.monotonic()
        train_run(run, split, report)
        torch.set_num_threads(run.training.num_threads)
        trained = load_checkpoint(run.folder / "train", run.training.device)
        ranks = rank_targets(trained.model, split.validation, device=run.training.device)
        state = run.training_state()
        record = {
            "epochs_run": state["epoch"],
            "best_epoch": state["best_epoch"],
            "train_seconds": round(state["seconds"], 3),  # all attempts of an interrupted trial together
            "wall_seconds": round(time.monotonic() - began, 1),  # of the attempt that ended
            "validation": {name: round(value, 6) for name, value in metrics_of_ranks(ranks).items()},
            "git_commit": trained.git_commit,
        }
        write_folder(run.folder / "trial", lambda folder: _write(folder / "trial.json", json.dumps(record)))


def best_trial(records: Sequence[dict[str, Any]], objective: str = OBJECTIVE) -> dict[str, Any]:
    """The record with the largest validation figure; of equal ones the first."""
    if not records:
        raise ValueError("the search has no finished trial yet")
    if objective not in metric_names():
        raise ValueError(f"objective must be one of {', '.join(metric_names())}, got {objective!r}")
    return max(records, key=lambda record: record["validation"][objective])


def read_tuned(paths: Sequence[Path], objective: str = OBJECTIVE) -> dict[str, Tuned]:
    """Spec -> its best trial's settings, or those it had in an earlier comparison.

    paths: records of searches, and `results.json` of comparisons; a search outdoes a comparison
    Raises ValueError for a file that is neither or holds nothing.
    """
    by_spec: dict[str, list[dict[str, Any]]] = {}
    tuned: dict[str, Tuned] = {}
    for path in paths:
        if path.suffix == ".json":
            tuned |= _settings_of_results(path)
            continue
        records = read_records(path)
        if not records:
            raise ValueError(f"tuned: {path} holds no finished trial")
        for record in records:
            by_spec.setdefault(record["spec"], []).append(record)
    for spec, records in by_spec.items():
        if len({record["dataset_id"] for record in records}) > 1:
            raise ValueError(f"tuned: the trials of {spec} were run on different data; give those of one log")
        best = best_trial(records, objective)
        training = {"epochs": best["epochs"], **best["settings"]["training"]}
        tuned[spec] = Tuned(best["settings"]["model"], training, best["dataset_id"])
    return tuned


def _settings_of_results(path: Path) -> dict[str, Tuned]:
    """Spec -> the settings of its runs in a `results.json`; those of the last one, where they differ."""
    try:
        return {
            spec_of(entry): Tuned(
                entry["settings"]["model"], entry["settings"]["training"], entry["settings"]["tuned_on"] or ""
            )
            for entry in json.loads(path.read_text())
        }
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"tuned: {path} is not the results.json of a comparison ({error!r})") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The trials recorded so far; a last line cut short by a crash is left out."""
    try:
        lines = path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the record of a search: {error}") from error


def _prepare(out: Path, identity: Search, resume: bool) -> dict[int, dict[str, Any]]:
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        return {}
    if not resume:
        raise ValueError(
            f"out: {out} holds a search already; give --resume to go on with it, or another file"
        )
    records = read_records(out)
    for record in records:
        for name, value in dataclasses.asdict(identity).items():
            if record.get(name) != value:
                raise ValueError(
                    f"resume: the search in {out} had {name} {record.get(name)!r}, this one has {value!r}; "
                    "give the same, or another --out"
                )
    whole = "".join(json.dumps(record) + "\n" for record in records)
    staged = out.with_name(f".{out.name}-staged")
    _write(staged, whole)
    os.replace(staged, out)
    return {record["trial"]: record for record in records}


def _append(out: Path, record: dict[str, Any]) -> None:
    with out.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    path.write_text(text)
