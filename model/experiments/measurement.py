"""Everything that is measured of one trained model on one set of questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from model.data.dataset import EvaluationSet
from model.metrics import gap_group, is_above_zero, list_metrics, question_metrics
from model.ranking import Ranking, rank_and_list
from model.significance import bootstrap_intervals
from model.two_tower import TwoTower

CURVE_CUTOFFS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def measure(
    model: TwoTower,
    questions: EvaluationSet,
    *,
    item_counts: np.ndarray,
    reference: np.ndarray,
    uses_time: bool,
    device: str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The figures, and the ranks they come from.

    item_counts: (M,) in training   reference: of `model.metrics.item_reference`
    uses_time: whether to ask once more with the request's time hidden
    -> figures for results.json; {"rank", "rank_unseen", maybe "rank_time_hidden"}, each (Q,) int32
    """
    ranking = rank_and_list(model, questions, device=device, on_batch=on_batch)
    ranks = {"rank": ranking.rank, "rank_unseen": ranking.rank_unseen}
    figures = {
        "users": len(questions),
        **_main_figures(ranking, item_counts, reference),
        "metrics_seen_masked": {
            **means(ranking.rank_unseen),
            **_rounded(list_metrics(ranking.top_unseen, item_counts, reference)),
        },
        "metrics_by_gap": by_gap(ranking.rank, gap_group(questions)),
        "recall_curve": {
            str(cutoff): round(float((ranking.rank <= cutoff).mean()), 6)
            for cutoff in CURVE_CUTOFFS
            if cutoff < model.num_items
        },
    }
    if uses_time:
        hidden = rank_and_list(model, questions, device=device, hide_request_time=True, on_batch=on_batch)
        ranks["rank_time_hidden"] = hidden.rank
        figures["metrics_time_hidden"] = means(hidden.rank)
    return figures, {name: rank.astype(np.int32) for name, rank in ranks.items()}


def by_gap(rank: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """Metrics of the questions in each group of pauses, and of all with a known pause above 0.

    -> group -> {"users", "metrics", "intervals"}, groups without a question left out
    """
    chosen = {name: group == name for name in np.unique(group)}
    chosen["above_0_s"] = is_above_zero(group)
    return {
        name: {"users": int(of_group.sum()), **_with_intervals(rank[of_group])}
        for name, of_group in chosen.items()
        if of_group.any()
    }


def means(rank: np.ndarray) -> dict[str, float]:
    """Metric -> mean over questions."""
    return _rounded({name: float(values.mean()) for name, values in question_metrics(rank).items()})


def _main_figures(ranking: Ranking, item_counts: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    figures = _with_intervals(ranking.rank)
    figures["metrics"] |= _rounded(list_metrics(ranking.top, item_counts, reference))
    return figures


def _with_intervals(rank: np.ndarray) -> dict[str, Any]:
    metrics = question_metrics(rank)
    intervals = bootstrap_intervals(np.stack(list(metrics.values()), axis=1))
    return {
        "metrics": means(rank),
        "intervals": {
            name: [round(float(low), 6), round(float(high), 6)]
            for name, (low, high) in zip(metrics, intervals, strict=True)
        },
    }


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}
