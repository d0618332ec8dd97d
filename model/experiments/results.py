"""From finished runs to `results.json` (every run) and `summary.json` (means over seeds, paired tests).

A command owns the rows of its data set and split and leaves all others as they are, so that one folder
can gather several data sets. Nothing here holds a row of data: figures only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.data.dataset import Split
from model.experiments.markdown_cells import spec_of
from model.experiments.measured_run import PARTS
from model.experiments.recorded_runs import intervals_of_figures
from model.experiments.runs import Run, as_settings
from model.metrics import gap_group, is_above_zero, question_metrics
from model.significance import compare_paired, seed_and_user_intervals

_KEY = ("dataset", "split", "part", "model", "variant")
_OF_A_RUN = (
    *("params", "params_with_items", "train_seconds", "epochs", "best_epoch"),
    *("train_targets_per_second", "ms_per_sample", "hardware", "git_commit"),
)


def entries(runs: Sequence[Run], *, dataset: str, split: Split) -> list[dict[str, Any]]:
    """One entry for each finished run and part."""
    found = []
    for run in runs:
        if not run.finished:
            continue
        figures = run.figures()
        for part in PARTS:
            entry = {
                **_key(run, dataset, split, part),
                "seed": run.training.seed,
                "dataset_id": split.train.fingerprint,
                **figures[part],
                **{name: figures[name] for name in _OF_A_RUN},
                "settings": as_settings(run),
                "run": run.folder.name,
            }
            if part == "test":
                probes = ("drift_similarity", "intent_trust")
                entry |= {name: figures[name] for name in probes if name in figures}
            found.append(entry)
    return found


def summarise(
    runs: Sequence[Run],
    *,
    dataset: str,
    split: Split,
    reference: str | None,
    recorded: Sequence[dict[str, Any]] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Means over the seeds of each spec with intervals over seeds and users, and paired tests.

    reference: the spec that is tested against every other; none: no tests
    recorded: entries of runs that are not there; they have no part in tests
    -> {"rows": [...], "tests": [...]}
    """
    by_spec: dict[str, list[Run]] = {run.spec: [] for run in runs}
    for run in runs:
        if run.finished:
            by_spec[run.spec].append(run)
    rows: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    raw = [*entries(runs, dataset=dataset, split=split), *recorded]
    for part in PARTS:
        for spec, of_spec in by_spec.items():
            own = [entry for entry in raw if (spec_of(entry), entry["part"]) == (spec, part)]
            if not own:
                continue
            own.sort(key=lambda entry: entry["seed"])
            row = {name: own[0][name] for name in _KEY} | _mean([_figures(entry) for entry in own])
            row["seeds"] = [entry["seed"] for entry in own]
            whole = len(of_spec) == len(own)
            row["intervals"] = _intervals(of_spec, part) if whole else intervals_of_figures(own)
            rows.append(row)
    if by_spec.get(reference or ""):
        ours, group = by_spec[reference or ""], gap_group(split.test)
        for spec, of_spec in by_spec.items():
            if spec != reference and of_spec:
                key = _key(ours[0], dataset, split, "test")
                tests += [{**key, **test} for test in _tests(ours, of_spec, group)]
    return {"rows": rows, "tests": tests}


def write_results(
    out: Path,
    new_entries: list[dict[str, Any]],
    summary: dict[str, list[dict[str, Any]]] | None,
    owner: dict[str, str],
) -> None:
    """Put what belongs to `owner` (dataset, split) into `out`, in place of its earlier entries.

    summary: of `summarise`; None leaves the one in `out` as it is
    """
    out.mkdir(parents=True, exist_ok=True)
    old_entries, old_summary = read_results(out)
    _write(out / "results.json", _list(_others(old_entries, owner) + new_entries) + "\n")
    if summary is not None:
        merged = {name: _others(old_summary[name], owner) + summary[name] for name in ("rows", "tests")}
        lists = (f'"{name}": {_list(merged[name])}' for name in merged)
        _write(out / "summary.json", "{" + ",\n".join(lists) + "}\n")


def read_results(out: Path) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """What `out` holds of both files; nothing when it holds none."""
    results, summary = out / "results.json", out / "summary.json"
    return (
        json.loads(results.read_text()) if results.exists() else [],
        json.loads(summary.read_text()) if summary.exists() else {"rows": [], "tests": []},
    )


def _list(rows: list[dict[str, Any]]) -> str:
    """A JSON list with one row a line, which changes line by line under version control."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


def _write(path: Path, text: str) -> None:
    """Write beside `path` and move into place; a reader never sees half a file."""
    staged = path.with_name(f".{path.name}-staged")
    staged.write_text(text)
    os.replace(staged, path)


def _key(run: Run, dataset: str, split: Split, part: str) -> dict[str, str]:
    return {
        "dataset": dataset,
        "split": split.name,
        "part": part,
        "model": run.model,
        "variant": run.variant,
    }


def _figures(entry: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an entry that have a mean over seeds."""
    left_out = ("intervals", "settings", "seed", "drift_similarity", "intent_trust")
    return {
        name: _figures(value) if isinstance(value, dict) else value
        for name, value in entry.items()
        if name not in left_out and isinstance(value, dict | int | float)
    }


def _mean(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of equal trees of numbers; what only some of them have is a mean over those."""
    mean: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        mean[name] = _mean(values) if isinstance(values[0], dict) else round(sum(values) / len(values), 6)
    return mean


def _by_user(runs: Sequence[Run], part: str) -> tuple[list[str], np.ndarray]:
    """Names of the metrics, and (S, Q, F) of each seed, user and metric."""
    of_seeds = [question_metrics(run.ranks(part)) for run in runs]
    names = list(of_seeds[0])
    return names, np.stack([np.stack([of_seed[name] for name in names], axis=1) for of_seed in of_seeds])


def _intervals(runs: Sequence[Run], part: str) -> dict[str, list[float]]:
    names, values = _by_user(runs, part)
    ends = seed_and_user_intervals(values)
    return {name: [round(float(end), 6) for end in pair] for name, pair in zip(names, ends, strict=True)}


def _tests(ours: list[Run], theirs: list[Run], group: np.ndarray) -> list[dict[str, Any]]:
    """Ours against theirs on the seeds that both have, for all test questions and for those after a pause."""
    seeds = sorted({run.training.seed for run in ours} & {run.training.seed for run in theirs})
    if not seeds:
        return []
    names, of_us = _by_user([run for run in ours if run.training.seed in seeds], "test")
    _, of_them = _by_user([run for run in theirs if run.training.seed in seeds], "test")
    tests = []
    for questions, chosen in (("all", group != ""), ("above_0_s", is_above_zero(group))):
        if not chosen.any():
            continue
        pairs = compare_paired(of_us[:, chosen], of_them[:, chosen])
        tests += [
            {
                "against_model": theirs[0].model,
                "against_variant": theirs[0].variant,
                "seeds": seeds,
                "questions": questions,
                "users": int(chosen.sum()),
                "metric": name,
                **{field: _plain(value) for field, value in vars(pair).items()},
            }
            for name, pair in zip(names, pairs, strict=True)
        ]
    return tests


def _plain(value: Any) -> Any:
    """Rounded, and null for what is not a number: JSON has no nan."""
    if isinstance(value, tuple):
        return [_plain(end) for end in value]
    return round(value, 6) if math.isfinite(value) else None


def _others(rows: list[dict[str, Any]], owner: dict[str, str]) -> list[dict[str, Any]]:
    return [row for row in rows if any(row[name] != value for name, value in owner.items())]
