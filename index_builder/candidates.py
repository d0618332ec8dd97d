"""Recall itself: sequences in, candidates out. The canary of a build and the service's engine share it.

Pure functions of model, index, batch, noise and exclusions, so that what was checked when a bundle was
built is what answers requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Collection
from dataclasses import dataclass

import numpy as np
import torch

from index_builder.ann import AnnIndex
from model.batch import Sequence, SequenceBatch, collate
from model.noise import Noise, request_noise
from model.two_tower import TwoTower


@dataclass(frozen=True)
class Candidates:
    """The answer of a batch.

    item_index: (B, K) int64 in 1..M, best first; 0 at the end where fewer than K items were allowed
    score: (B, K) float32, larger is better; -inf where item_index is 0
    tower_seconds, search_seconds: wall time of the whole batch in the user tower and in the index
    """

    item_index: np.ndarray
    score: np.ndarray
    tower_seconds: float
    search_seconds: float


def recall_sequences(
    model: TwoTower,
    index: AnnIndex,
    sequences: Collection[Sequence],
    keys: Collection[int],
    *,
    top_k: int | Collection[int],
    exclude: Collection[np.ndarray | None] | None = None,
) -> Candidates:
    """Candidates of each sequence, with the noise of its key (`model.noise.request_key`).

    top_k: K, or one per sequence   exclude: per sequence the item indices never to return, or None
    Raises ValueError for an empty sequence or when the user tower gives NaN or infinity.
    """
    batch = collate(sequences, max_length=model.max_length)
    noise = None
    if model.num_steps > 0:
        noise = request_noise(keys, batch.item_index.shape[1], model.noise_dim, device=_device(model))
    return recall_candidates(model, index, batch, noise=noise, top_k=top_k, exclude=exclude)


def recall_candidates(
    model: TwoTower,
    index: AnnIndex,
    batch: SequenceBatch,
    *,
    noise: Noise | None,
    top_k: int | Collection[int],
    exclude: Collection[np.ndarray | None] | None = None,
) -> Candidates:
    """User tower, then index search. The arguments are those of `recall_sequences`, already collated."""
    started = time.perf_counter()
    queries = user_embeddings(model, batch, noise)
    embedded = time.perf_counter()
    rows_out = None if exclude is None else [None if items is None else items - 1 for items in exclude]
    score, rows = index.search(queries, top_k, rows_out)
    return Candidates(
        item_index=rows + 1,
        score=score,
        tower_seconds=embedded - started,
        search_seconds=time.perf_counter() - embedded,
    )


def user_embeddings(model: TwoTower, batch: SequenceBatch, noise: Noise | None) -> np.ndarray:
    """The user tower's output on the host.   -> (B, D) float32"""
    with torch.inference_mode():
        return model.user_embedding(batch.to(_device(model)), noise).float().cpu().numpy()


def _device(model: TwoTower) -> torch.device:
    return next(model.parameters()).device
