"""Runs of which only the results are left: their figures count in means, without a rank to test.

Whether an earlier entry is of the same run is plain from the name of the run's folder, which is a digest of
everything that shapes its outcome, the data and the seed among it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from model.experiments.markdown_cells import spec_of
from model.experiments.runs import Run

_HALF_WIDTHS = 1.959964
"""Standard errors in half a normal interval of 95 %."""


def recorded_entries(
    entries: Sequence[dict[str, Any]], runs: Sequence[Run], owner: dict[str, str]
) -> list[dict[str, Any]]:
    """Those of a data set's and split's `entries` that are of one of `runs`, itself not there."""
    names = {run.folder.name for run in runs if not run.finished}
    return [
        entry
        for entry in entries
        if entry["run"] in names and all(entry[name] == value for name, value in owner.items())
    ]


def runs_to_do(runs: Sequence[Run], recorded: Sequence[dict[str, Any]]) -> list[Run]:
    """Those that are neither finished nor recorded."""
    names = {entry["run"] for entry in recorded}
    return [run for run in runs if not run.finished and run.folder.name not in names]


def intervals_of_figures(entries: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Metric -> interval of the mean over users and seeds, from each seed's own figure and interval.

    The normal form of what `significance.seed_and_user_intervals` draws: all seeds answer the same users, so
    their share of the variance does not shrink with the number of seeds, and the share of the seeds does.
    entries: of one recipe and part, one a seed
    """
    intervals = {}
    for name in entries[0]["intervals"]:
        values = [entry["metrics"][name] for entry in entries]
        ends = [entry["intervals"][name] for entry in entries]
        mean = sum(values) / len(values)
        of_users = sum(((high - low) / 2 / _HALF_WIDTHS) ** 2 for low, high in ends) / len(ends)
        of_seeds = sum((value - mean) ** 2 for value in values) / len(values) ** 2
        half = _HALF_WIDTHS * math.sqrt(of_users + of_seeds)
        intervals[name] = [round(mean - half, 6), round(mean + half, 6)]
    return intervals


def fuller_tests(
    new: Sequence[dict[str, Any]],
    old: Sequence[dict[str, Any]],
    owner: dict[str, str],
    reference: str | None,
) -> list[dict[str, Any]]:
    """The new tests, and of the old ones of the same reference those with more seeds than their new one."""
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    for test in [*old, *new]:
        ours = spec_of(test) == reference and all(test[name] == value for name, value in owner.items())
        pair = tuple(test[name] for name in ("against_model", "against_variant", "questions", "metric"))
        if ours and (pair not in kept or len(test["seeds"]) >= len(kept[pair]["seeds"])):
            kept[pair] = test
    return list(kept.values())
