"""How far two answers to one request agree: what an experiment's arms are compared by.

Each answer is item ids, best first, with their scores. Scores of two bundles are comparable only as far as
their models are; the order always is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

PERSISTENCE = 0.9
"""p of the rank-biased overlap: the first ten places carry 86 % of the weight."""


class Agreement(NamedTuple):
    """An arm's answer beside the control's.

    overlap, rank_biased: 0 for nothing in common .. 1 for the same   score_shift: difference of mean scores
    """

    overlap: float
    rank_biased: float
    score_shift: float


def agreement(
    item_ids: Sequence[str],
    scores: Sequence[float],
    control_ids: Sequence[str],
    control_scores: Sequence[float],
) -> Agreement | None:
    """Compare an arm's answer with the control's; None when one of them is empty."""
    if not item_ids or not control_ids:
        return None
    return Agreement(
        overlap=len(set(item_ids) & set(control_ids)) / max(len(item_ids), len(control_ids)),
        rank_biased=rank_biased_overlap(item_ids, control_ids),
        score_shift=sum(scores) / len(scores) - sum(control_scores) / len(control_scores),
    )


def rank_biased_overlap(left: Sequence[str], right: Sequence[str], p: float = PERSISTENCE) -> float:
    """RBO_ext of two rankings (Webber, Moffat and Zobel, TOIS 28(4), 2010, Eq. 30).

    The agreement at depth d, X_d / d, weighted by p^d; what lies beyond is taken to agree as the whole does.
    A shorter list has nothing in common below its end.
    """
    seen_left: set[str] = set()
    seen_right: set[str] = set()
    common, weight, total, depth = 0, 1.0, 0.0, 0
    for depth, (one, other) in enumerate(zip_longest(left, right), start=1):
        if one == other:
            common += 1
        else:
            common += (one in seen_right) + (other in seen_left)
        if one is not None:
            seen_left.add(one)
        if other is not None:
            seen_right.add(other)
        weight *= p
        total += common / depth * weight
    return common / depth * weight + (1 - p) / p * total if depth else 0.0
