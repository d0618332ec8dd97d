"""Gates on what a bundle answers to the newest day's users, and on what the last bundle would have."""

from __future__ import annotations

import numpy as np

from index_builder.bundle import Bundle
from index_builder.bundle_rows import served_rows
from index_builder.gate_embeddings import NO_LAST
from index_builder.gate_limits import GateLimits
from index_builder.newest_day_answers import CUTOFF, Answers, ask
from index_builder.overlap import ann_overlap
from index_builder.quality import Check, skip
from model.data.dataset import EvaluationSet
from model.metrics import question_metrics
from model.significance import sure_relative_drop

_MAX_OVERLAP_QUERIES = 256
_HEAD_SHARE, _MIN_HEAD = 0.05, CUTOFF
"""Popular items are the first twentieth of the catalogue, at least as many as an answer has places."""

ANSWER_GATES = (
    "answered_share",
    "known_target_share",
    "ann_overlap_at_100",
    "recall_at_20_over_popular",
    "recall_at_20_drop",
    "mrr_at_20_drop",
    "answer_coverage",
    "answer_popular_share",
    "answer_coverage_ratio",
    "answer_popular_rise",
)

NO_QUESTIONS = "nobody can be asked: there is no log, or nobody in its newest day has a history"


def check_answers(
    candidate: Bundle, current: Bundle | None, newest_day: EvaluationSet | None, limits: GateLimits
) -> list[Check]:
    """Every gate that needs answers.   newest_day: questions that neither bundle was trained on"""
    asked = 0 if newest_day is None else len(newest_day)
    if newest_day is None:
        return [skip(name, "no log was given: see --logs") for name in ("questions", *ANSWER_GATES)]
    count = Check(
        "questions",
        asked,
        at_least=limits.min_questions,
        detail="users of the newest day with a history",
        remedy="see whether the newest day is there, or ask fewer of it (min_questions)",
    )
    if not asked:
        return [count, *(skip(name, NO_QUESTIONS) for name in ANSWER_GATES)]
    chosen = np.unique(np.linspace(0, asked - 1, min(asked, int(limits.max_questions))).astype(int))
    ours = ask(candidate, newest_day, chosen)
    theirs = None if current is None else ask(current, newest_day, chosen)
    return [
        count,
        Check(
            "answered_share",
            float(ours.answered.mean()),
            at_least=limits.min_answered_share,
            detail=f"of {len(chosen):,} users",
            remedy="the bundle does not know their items or gives no finite scores (min_answered_share)",
        ),
        Check(
            "known_target_share",
            float(ours.known_target.mean()),
            at_least=limits.min_known_target_share,
            detail="of the items that came next",
            remedy="items of the newest day are not in the catalogue (min_known_target_share)",
        ),
        _check_overlap(candidate, ours, limits),
        check_popular(ours, limits),
        *check_drops(ours, theirs, limits),
        *check_lists(candidate, ours, current, theirs, limits),
    ]


def _check_overlap(candidate: Bundle, ours: Answers, limits: GateLimits) -> Check:
    queries = ours.user_embeddings
    if not len(queries):
        return skip("ann_overlap_at_100", "no user embedding is finite (answered_share says so too)")
    step = max(1, len(queries) // _MAX_OVERLAP_QUERIES)
    return Check(
        "ann_overlap_at_100",
        ann_overlap(candidate.index, candidate.item_embeddings, queries[::step][:_MAX_OVERLAP_QUERIES]),
        at_least=limits.min_ann_overlap,
        detail="of exact search's best 100, for users of the newest day",
        remedy="the index is narrow, or of other embeddings: build it again (min_ann_overlap)",
    )


def check_popular(ours: Answers, limits: GateLimits) -> Check:
    of_model, of_list = (float(_recall_of(rank).mean()) for rank in (ours.rank, ours.popular_rank))
    return Check(
        "recall_at_20_over_popular",
        of_model - of_list,
        at_least=0.0 - limits.max_behind_popular,
        detail=f"Recall@20 {of_model:.4f}, had everybody been shown the popular list {of_list:.4f}",
        remedy="the model knows less than its popular list: see its training (max_behind_popular)",
    )


def check_drops(ours: Answers, theirs: Answers | None, limits: GateLimits) -> list[Check]:
    checks = []
    for metric in ("recall", "mrr"):
        name = f"{metric}_at_20_drop"
        if theirs is None:
            checks.append(skip(name, NO_LAST))
            continue
        new, old = (
            question_metrics(answers.rank, (CUTOFF,))[f"{metric}_at_20"] for answers in (ours, theirs)
        )
        checks.append(
            Check(
                name,
                sure_relative_drop(new, old, confidence=limits.drop_confidence),
                at_most=getattr(limits, f"max_{metric}_drop"),
                detail=f"{new.mean():.4f}, last bundle {old.mean():.4f}, {len(new):,} users of the newest "
                f"day; the share that is lost for sure, at {limits.drop_confidence:.0%}",
                remedy="keep the last bundle and see what changed in log, vocabulary and training "
                f"(max_{metric}_drop)",
            )
        )
    return checks


def check_lists(
    candidate: Bundle, ours: Answers, current: Bundle | None, theirs: Answers | None, limits: GateLimits
) -> list[Check]:
    coverage, popular = _coverage(candidate, ours), _popular_share(candidate, ours)
    checks = [
        Check(
            "answer_coverage",
            coverage,
            at_least=limits.min_coverage,
            detail="distinct items in the answers, of as many as there could be",
            remedy="everybody is shown the same: see the user tower (min_coverage)",
        ),
        Check(
            "answer_popular_share",
            popular,
            at_most=limits.max_popular_share,
            detail="places held by popular items",
            remedy="the model shows hardly anything but popular items (max_popular_share)",
        ),
    ]
    if current is None or theirs is None:
        return [*checks, skip("answer_coverage_ratio", NO_LAST), skip("answer_popular_rise", NO_LAST)]
    last_coverage, last_popular = _coverage(current, theirs), _popular_share(current, theirs)
    return [
        *checks,
        Check(
            "answer_coverage_ratio",
            coverage / last_coverage if last_coverage else 1.0,
            at_least=limits.min_coverage_ratio,
            detail=f"{coverage:.4f}, last bundle {last_coverage:.4f}",
            remedy="answers became alike: see the user tower and the log (min_coverage_ratio)",
        ),
        Check(
            "answer_popular_rise",
            popular - last_popular,
            at_most=limits.max_popular_rise,
            detail=f"{popular:.4f}, last bundle {last_popular:.4f}",
            remedy="answers moved to popular items: see the log for bots (max_popular_rise)",
        ),
    ]


def _coverage(bundle: Bundle, answers: Answers) -> float:
    """Distinct items recalled, over the most there can be with so many places and items."""
    shown = answers.row[answers.row >= 0]
    return len(np.unique(shown)) / min(len(bundle.item_ids), answers.row.size)


def _popular_share(bundle: Bundle, answers: Answers) -> float:
    """The share of places that the bundle's own most popular items hold."""
    shown = answers.row[answers.row >= 0]
    size = max(_MIN_HEAD, round(_HEAD_SHARE * len(bundle.item_ids)))
    head = served_rows(bundle, bundle.popular[:size])
    return float(np.isin(shown, head).mean()) if len(shown) else 0.0


def _recall_of(rank: np.ndarray) -> np.ndarray:
    return question_metrics(rank, (CUTOFF,))[f"recall_at_{CUTOFF}"]
