"""Gates on what a bundle answers: the newest day's users are asked for their next item, of both bundles.

The question is put as a request would put it (user tower, then index; the fastest CPU engine), with the same
noise for both bundles, so that what differs is the bundles. Items are matched by id: a target that a bundle
does not know is missed, and so is a user whose history it does not know. Seen items are not left out, as in
`model.evaluation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from index_builder.bundle import Bundle
from index_builder.bundle_rows import item_indices, served_rows
from index_builder.gate_embeddings import NO_LAST
from index_builder.gate_limits import GateLimits
from index_builder.overlap import ann_overlap
from index_builder.quality import Check, skip
from index_builder.route_merge import merge_routes
from model.batch import Sequence, collate
from model.data.dataset import EvaluationSet
from model.engines.tower_engine import TowerEngine, build_tower_engine
from model.metrics import question_metrics
from model.noise import request_key
from model.significance import sure_relative_drop

CUTOFF = 20
TOP_K = 100
_BATCH_SIZE = 64
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


@dataclass(frozen=True, eq=False)
class Answers:
    """What one bundle said to Q questions.

    row: (Q, 20) int64 rows of the recalled items, -1 where there is none
    rank: (Q,) int64 of the target, 1 being first; 21 when it is not among the first 20
    popular_rank: (Q,) the same, had everybody been shown the popular list
    answered: (Q,) bool, whether all the candidates asked for came, with finite scores
    known_target: (Q,) bool   user_embeddings: (E, D) float32, the finite ones
    """

    row: np.ndarray
    rank: np.ndarray
    popular_rank: np.ndarray
    answered: np.ndarray
    known_target: np.ndarray
    user_embeddings: np.ndarray


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


def ask(bundle: Bundle, questions: EvaluationSet, chosen: np.ndarray) -> Answers:
    """Ask a bundle the chosen questions.   chosen: (Q,)"""
    log, length = questions.interactions, bundle.model.max_length
    item_ids = [log.item_ids[item - 1] for item in questions.target[chosen].tolist()]
    target = served_rows(bundle, item_ids)  # (Q,) -1: cannot be recalled
    index_of = _indices_by_log_item(bundle, questions, chosen)
    row = np.full((len(chosen), CUTOFF), -1, dtype=np.int64)
    answered = np.zeros(len(chosen), dtype=bool)
    embeddings = []
    tower = build_tower_engine(bundle.model)
    for start in range(0, len(chosen), _BATCH_SIZE):
        members, sequences, keys = [], [], []
        for place, question in enumerate(chosen[start : start + _BATCH_SIZE].tolist(), start):
            whole = questions.sequence(question)
            index, time = index_of[whole.item_index[-length:]], whole.timestamp[-length:]
            if index.any():
                sequences.append(Sequence(index[index > 0], time[index > 0], whole.request_time))
                members.append(place)
                keys.append(request_key(0, log.user_ids[int(questions.user[question])]))
        if members:
            routes, rows, full = _recall(bundle, tower, sequences, keys)
            row[members, : rows.shape[1]], answered[members] = rows, full
            embeddings.append(routes)
    popular = served_rows(bundle, bundle.popular[:CUTOFF])
    width = bundle.item_embeddings.shape[1]
    return Answers(
        row=row,
        rank=_rank(row, target),
        popular_rank=_rank(np.broadcast_to(popular, (len(chosen), len(popular))), target),
        answered=answered,
        known_target=target >= 0,
        user_embeddings=np.concatenate(embeddings) if embeddings else np.empty((0, width), np.float32),
    )


def _recall(
    bundle: Bundle, tower: TowerEngine, sequences: list[Sequence], keys: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> user embeddings (E, D), the finite ones; rows (B, <= 20); whether each answer is whole (B,)

    Not `recall_sequences`, where one user's NaN refuses the whole batch: here it counts as one user's.
    """
    batch = collate(sequences, max_length=bundle.model.max_length)
    with torch.inference_mode():
        routes = tower.user_embeddings(batch, keys).float().cpu().numpy()  # (B, R, D)
    num_routes = routes.shape[1]
    finite = np.isfinite(routes).all(axis=(1, 2))  # (B,)
    flat = np.where(finite[:, None, None], routes, 0).reshape(-1, routes.shape[2])
    top_k = min(TOP_K, len(bundle.item_ids))
    scores, rows = merge_routes(*bundle.index.search(flat, top_k), num_routes=num_routes, top_k=top_k)
    full = finite & (rows >= 0).all(axis=1) & np.isfinite(scores).all(axis=1)
    rows = np.where(finite[:, None], rows, -1)[:, :CUTOFF]
    return flat[np.repeat(finite, num_routes)], rows, full


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


def _rank(row: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The place of each target in its list, or one beyond the cutoff.   row: (Q, K)   target: (Q,)"""
    hit = (row == target[:, None]) & (target[:, None] >= 0)
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, CUTOFF + 1)


def _recall_of(rank: np.ndarray) -> np.ndarray:
    return question_metrics(rank, (CUTOFF,))[f"recall_at_{CUTOFF}"]


def _indices_by_log_item(bundle: Bundle, questions: EvaluationSet, chosen: np.ndarray) -> np.ndarray:
    """The bundle's item indices by those of the log, 0 where it has none; looked up where needed alone.

    -> (M + 1,) of the log's M items
    """
    log, length = questions.interactions, bundle.model.max_length
    histories = [questions.sequence(question).item_index[-length:] for question in chosen.tolist()]
    items = np.unique(np.concatenate(histories))
    index_of = np.zeros(log.num_items + 1, dtype=np.int64)
    index_of[items] = item_indices(bundle, [log.item_ids[item - 1] for item in items.tolist()])
    return index_of
