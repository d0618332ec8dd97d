"""What travels with a trained model beside its weights: popular items, and real behaviour to try it on."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.batch import Sequence
from model.checkpoint import Checkpoint, current_git_commit
from model.data.dataset import Split
from model.two_tower import TwoTower

NUM_POPULAR = 1_000
NUM_CANARIES = 8
NUM_TUNING = 256
"""Users on whom the index is tuned and measured. Embeddings of one user after each behaviour are alike: those
of 8 users tell little of others, however many they are."""


def best_checkpoint(
    model: TwoTower,
    split: Split,
    *,
    model_name: str,
    model_config: dict[str, Any],
    metrics: dict[str, float],
    settings: dict[str, Any],
) -> Checkpoint:
    """`model` as trained on `split`.   settings: of the training, with its seed"""
    return Checkpoint(
        model=model,
        model_name=model_name,
        model_config=model_config,
        item_ids=split.train.item_ids,
        popular=_popular(split),
        canary=_sequences(split, NUM_CANARIES, model.max_length),
        tuning=_sequences(split, NUM_TUNING, model.max_length),
        metrics=metrics,
        dataset_id=split.train.fingerprint,
        seed=settings["seed"],
        git_commit=current_git_commit(),
        settings=settings,
    )


def _popular(split: Split) -> np.ndarray:
    order = np.argsort(-split.train.item_counts(), kind="stable")[:NUM_POPULAR]
    return (order + 1).astype(np.int32)


def _sequences(split: Split, count: int, length: int) -> list[Sequence]:
    """The last `length` behaviours of `count` validation users, or of all, evenly spread."""
    chosen = np.linspace(0, len(split.validation) - 1, count).astype(int)
    sequences = [split.validation.sequence(int(query)) for query in np.unique(chosen)]
    return [
        Sequence(entry.item_index[-length:], entry.timestamp[-length:], entry.request_time)
        for entry in sequences
    ]
