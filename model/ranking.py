"""Full ranking in one pass over the questions: each target's rank and the items that stand first.

The ranks are those of `model.evaluation.rank_targets`, with and without the items already seen, and
the lists are what a recall stage would hand on; metrics.py says what both are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from model.data.dataset import EvaluationSet
from model.evaluation import mask_seen_items, rank_of, score_in_batches
from model.two_tower import TwoTower

LIST_LENGTH = 100


@dataclass(frozen=True, eq=False)
class Ranking:
    """Answers to Q questions.

    rank, rank_unseen: (Q,) int64 of the target, 1 being first, among all items and among those not yet seen
    top, top_unseen: (Q, L) int32 item indices, best first
    """

    rank: np.ndarray
    rank_unseen: np.ndarray
    top: np.ndarray
    top_unseen: np.ndarray


@torch.inference_mode()
def rank_and_list(
    model: TwoTower,
    questions: EvaluationSet,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    seed: int = 0,
    hide_request_time: bool = False,
    list_length: int = LIST_LENGTH,
    on_batch: Callable[[int], None] | None = None,
) -> Ranking:
    """Rank all M items for every question.

    hide_request_time: do not tell when the target came   on_batch: told the number of questions done
    """
    length = min(list_length, model.num_items)
    parts: list[tuple[np.ndarray, ...]] = []
    for scores, target, sequences in score_in_batches(
        model,
        questions,
        np.arange(len(questions)),
        device=device,
        batch_size=batch_size,
        generator=torch.Generator(device=device).manual_seed(seed),
        hide_request_time=hide_request_time,
        on_batch=on_batch,
    ):
        rank, top = rank_of(scores, target), _first(scores, length)
        mask_seen_items(scores, sequences, target)
        answers = (rank, rank_of(scores, target), top, _first(scores, length))
        parts.append(tuple(answer.cpu().numpy() for answer in answers))
    rank_, rank_unseen, top_, top_unseen = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Ranking(rank_, rank_unseen, top_.astype(np.int32), top_unseen.astype(np.int32))


def _first(scores: torch.Tensor, length: int) -> torch.Tensor:
    """(B, M) -> (B, L) item indices"""
    return scores.topk(length, dim=1).indices + 1
