"""What a bundle answers to the newest day's users, asked for their next item.

The question is put as a request would put it (user tower, then index; the fastest CPU engine), with the same
noise for every bundle, so that what differs is the bundles. Items are matched by id: a target that a bundle
does not know is missed, and so is a user whose history it does not know. Seen items are not left out, as in
`model.evaluation`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from index_builder.bundle import Bundle
from index_builder.bundle_rows import item_indices, served_rows
from index_builder.route_merge import merge_routes
from model.batch import Sequence, collate
from model.data.dataset import EvaluationSet
from model.engines.tower_engine import TowerEngine, build_tower_engine
from model.noise import request_key

CUTOFF = 20
TOP_K = 100
_BATCH_SIZE = 64


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


def _rank(row: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The place of each target in its list, or one beyond the cutoff.   row: (Q, K)   target: (Q,)"""
    hit = (row == target[:, None]) & (target[:, None] >= 0)
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, CUTOFF + 1)


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
