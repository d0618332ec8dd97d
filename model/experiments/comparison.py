"""A comparison: which runs it has, their doing, and the folder of results that they make."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.data.dataset import Split
from model.experiments.job_pool import run_jobs
from model.experiments.markdown_cells import spec_of
from model.experiments.measured_run import carry_out
from model.experiments.recorded_runs import fuller_tests, runs_to_do
from model.experiments.result_figure import (
    plot_drift_similarity,
    plot_intent_trust,
    plot_recall_by_k,
    plot_recall_by_time,
)
from model.experiments.result_table import render_tables
from model.experiments.results import entries, read_results, summarise, write_results
from model.experiments.runs import Run, plan_run
from model.experiments.search import Tuned
from model.experiments.variants import VariantTable, resolve
from model.registry import MODELS, complete_config
from model.schedule_figure import plot_schedules
from model.training_settings import TrainingSettings


def parse_models(text: str, seeds: Sequence[int]) -> dict[str, list[int]]:
    """ "all,t2diff@5,sasrec:lag" -> spec -> seeds.

    `all` is every registered model; SPEC@N asks for the seeds 0..N-1 in place of `seeds`; a spec named
    again counts as it is named last.
    """
    plan: dict[str, list[int]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        spec, at, count = part.partition("@")
        if at and not (count.isdigit() and int(count) > 0):
            raise ValueError(f"models: {part!r} must end in @ and a number of seeds, as in t2diff@5")
        for name in MODELS if spec == "all" else [spec]:
            plan[name] = list(range(int(count))) if at else list(seeds)
    if not plan:
        raise ValueError(f"models: {text!r} names none; give some of {', '.join(MODELS)}, or all")
    return plan


def parse_seeds(text: str) -> list[int]:
    """ "0,1,4" or "0-4" -> the seeds"""
    try:
        seeds: list[int] = []
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        seeds = []
    if not seeds:
        raise ValueError(f"seeds must be like 0,1,2 or 0-4, got {text!r}")
    return list(dict.fromkeys(seeds))


def plan_comparison(
    split: Split,
    work: Path,
    models: Mapping[str, Sequence[int]],
    *,
    base: TrainingSettings,
    epochs: int | None = None,
    tuned: Mapping[str, Tuned] | None = None,
    own: VariantTable | None = None,
) -> list[Run]:
    """Every run, all specs' first seeds before any second one.

    base: the trainer's settings; over them the tuned ones, then `epochs`, then the spec's variant's. Tuned
    are those of the spec, or of what is left of it without its last variants.
    own: of `variants.read_variants`
    """
    runs = []
    for spec, seeds in models.items():
        model, variant, settings = resolve(spec, own)
        best = _tuned_for(spec, tuned or {})
        config = dataclasses.asdict(complete_config(model, {**best.model, **settings.model}))
        chosen = {**best.training, **({"epochs": epochs} if epochs else {}), **settings.training}
        for place, seed in enumerate(seeds):
            run = plan_run(
                work,
                split,
                model=model,
                variant=variant,
                model_config=config,
                training=dataclasses.replace(base, **{**chosen, "seed": seed}),
                tuned_on=best.dataset_id or None,
            )
            runs.append((place, run))
    return [run for _, run in sorted(runs, key=lambda placed: placed[0])]


def _tuned_for(spec: str, tuned: Mapping[str, Tuned]) -> Tuned:
    model, _, variant = spec.partition(":")
    parts = variant.split("+") if variant else []
    while parts:
        found = tuned.get(f"{model}:{'+'.join(parts)}")
        if found is not None:
            return found
        parts.pop()
    return tuned.get(model, Tuned({}, {}, ""))


def compare(
    split: Split,
    runs: Sequence[Run],
    out: Path,
    *,
    dataset: str,
    reference: str | None,
    num_processes: int,
    resume: bool,
    recorded: Sequence[dict[str, Any]] = (),
    on_report: Callable[[str, float, str], None] | None = None,
    on_end: Callable[[str, str | None], None] | None = None,
) -> dict[str, str]:
    """Carry out the runs that are not finished and leave results, tables and pictures in `out`.

    reference: the spec that paired tests set against the others   resume: whether earlier runs may be used
    recorded: entries of earlier results, whose runs then count as finished
    -> traceback of each failed run, by its name; the results are of the others
    Raises ValueError when there are earlier runs, or results, and `resume` is false.
    """
    if not resume:
        _refuse_leftovers(runs, out)
    by_name = {run.name: run for run in runs}
    owner = {"dataset": dataset, "split": split.name}
    earlier_tests = read_results(out)[1]["tests"]

    def ended(name: str, why: str | None) -> None:
        if why is None:  # what is known so far is on disk; means and tests wait for the end
            found = entries(runs, dataset=dataset, split=split)
            write_results(out, [*found, *recorded], None, owner)
        else:
            (by_name[name].folder / "error.txt").write_text(why)
        if on_end is not None:
            on_end(name, why)

    failed = run_jobs(
        carry_out,
        {run.name: (run, split) for run in runs_to_do(runs, recorded)},
        num_processes=num_processes,
        on_report=on_report,
        on_end=ended,
    )
    found = entries(runs, dataset=dataset, split=split)
    summary = summarise(runs, dataset=dataset, split=split, reference=reference, recorded=recorded)
    if recorded:
        summary["tests"] = fuller_tests(summary["tests"], earlier_tests, owner, reference)
    write_results(out, [*found, *recorded], summary, owner)
    present(out, dataset=dataset, split_name=split.name)
    return failed


def present(out: Path, *, dataset: str, split_name: str) -> None:
    """Draw `table.md` of everything in `out`, and the pictures of one data set and split."""
    found, summary = read_results(out)
    (out / "table.md").write_text(render_tables(summary))

    def own(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        key = (dataset, split_name, "test")
        return [row for row in rows if (row["dataset"], row["split"], row["part"]) == key]

    name = dataset if split_name == "leave_one_out" else f"{dataset} {split_name}"
    suffix = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    rows = own(summary["rows"])
    if rows:
        plot_recall_by_k(out / f"recall_by_k-{suffix}.png", rows)
        plot_recall_by_time(out / f"recall_by_time-{suffix}.png", rows)
    of_spec = {spec_of(entry): entry for entry in reversed(own(found)) if "intent_trust" in entry}
    probed = list(reversed(of_spec.values()))  # the first seed of each
    if probed:
        plot_drift_similarity(out / f"drift_similarity-{suffix}.png", probed)
        plot_intent_trust(out / f"intent_trust-{suffix}.png", probed)
        plot_schedules(out / "schedules.png", len(probed[0]["drift_similarity"]["step"]))


def _refuse_leftovers(runs: Sequence[Run], out: Path) -> None:
    if (out / "results.json").exists():
        raise ValueError(f"out: {out} holds results already; give --resume to renew or extend them")
    begun = [run for run in runs if run.begun]
    if begun:
        raise ValueError(
            f"work: {len(begun)} of these runs are there already, among them {begun[0].folder}; "
            "give --resume to go on with them, or another --work"
        )
