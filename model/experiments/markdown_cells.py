"""Cells and names that the tables share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.experiments.published import TABLE_2

Row = dict[str, Any]
"""A row of summary.json: a spec's means over seeds on one part of one split of one data set."""


def spec_of(row: Row) -> str:
    """model or model:variant"""
    return f"{row['model']}:{row['variant']}" if row["variant"] else str(row["model"])


def label_of(spec: str) -> str:
    """The paper's name of a method where it has one."""
    return next((published.method for published in TABLE_2 if published.spec == spec), spec)


def is_baseline(row: Row) -> bool:
    """Neither T2Diff nor one of its ablations."""
    return bool(row["model"] != "t2diff")


def heading(metric: str) -> str:
    """recall_at_20 -> Recall@20"""
    kind, _, cutoff = metric.partition("_at_")
    return f"{kind.capitalize() if kind == 'recall' else kind.upper()}@{cutoff}"


def with_interval(row: Row | None, metric: str) -> str:
    """0.3142 [0.301, 0.327]; a dash where there is no row."""
    if row is None:
        return "–"
    low, high = row["intervals"][metric]
    return f"{row['metrics'][metric]:.4f} [{low:.3f}, {high:.3f}]"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is words."""
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, rule, *lines))
