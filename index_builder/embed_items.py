"""The vectors that a build needs: every item's embedding, and real users' embeddings to search with."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Collection

import numpy as np
import torch

from model.batch import Sequence, collate
from model.engines.interface import EagerTower
from model.noise import request_key
from model.two_tower import TwoTower

_BATCH_SIZE = 64


def embed_items(model: TwoTower) -> np.ndarray:
    """The item tower's output on the host.   -> (M, D) float32, row m is item index m + 1"""
    with torch.inference_mode():
        return np.ascontiguousarray(model.item_embeddings().float().cpu().numpy())


def embed_prefixes(model: TwoTower, sequences: Collection[Sequence], *, max_queries: int = 256) -> np.ndarray:
    """User embeddings after every behaviour of `sequences`: users as the index will meet them.

    -> (Q, D) float32 of at most `max_queries` prefixes, spread evenly, every route of each
    """
    prefixes = list(_prefixes(sequences))
    chosen = np.unique(np.linspace(0, len(prefixes) - 1, min(max_queries, len(prefixes))).astype(int))
    tower = EagerTower(model)
    queries = []
    for start in range(0, len(chosen), _BATCH_SIZE):
        members = chosen[start : start + _BATCH_SIZE]
        batch = collate([prefixes[member] for member in members], max_length=model.max_length)
        keys = [request_key(0, f"prefix-{member}") for member in members]
        queries.append(tower.user_embeddings(batch, keys).flatten(0, 1).float().cpu().numpy())
    return np.concatenate(queries)


def _prefixes(sequences: Collection[Sequence]) -> Iterator[Sequence]:
    """What was known just before each next behaviour, and at the end."""
    for sequence in sequences:
        times = [*(int(time) for time in sequence.timestamp[1:]), sequence.request_time]
        for length, request_time in enumerate(times, start=1):
            yield Sequence(sequence.item_index[:length], sequence.timestamp[:length], request_time)
