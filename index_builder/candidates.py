"""Recall itself: sequences in, candidates out. The canary of a build and the service's engine share it.

Pure functions of model, index, batch, noise and exclusions, so that what was checked when a bundle was
built is what answers requests.

Sequences hold item indices, rows of the model. Answers and exclusions are served indices, rows of the index
plus one; the two are the same while no item is retired (`item_rows`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from index_builder.ann import AnnIndex
from index_builder.route_merge import merge_routes
from model.batch import Sequence, pad
from model.engines.interface import EagerTower, TowerEngine
from model.two_tower import TwoTower

if TYPE_CHECKING:
    from index_builder.delta_index import DeltaIndex  # which itself reads bundles


@dataclass(frozen=True)
class Candidates:
    """The answer of a batch.

    item_index: (B, K) int64 served indices in 1..M, best first; 0 at the end where fewer than K were allowed
    score: (B, K) float32, larger is better; -inf where item_index is 0
    tower_seconds, search_seconds: wall time of the whole batch in the user tower and in the index
    tower_cpu_seconds, search_cpu_seconds: processor time of the calling thread in them
    """

    item_index: np.ndarray
    score: np.ndarray
    tower_seconds: float
    search_seconds: float
    tower_cpu_seconds: float
    search_cpu_seconds: float


def recall_sequences(
    model: TwoTower,
    index: AnnIndex,
    sequences: Collection[Sequence],
    keys: Collection[int],
    *,
    top_k: int | Collection[int],
    exclude: Collection[np.ndarray | None] | None = None,
    tower: TowerEngine | None = None,
    delta: DeltaIndex | None = None,
    exclude_new: Collection[np.ndarray | None] | None = None,
) -> Candidates:
    """Candidates of each sequence, with the noise of its key (`model.noise.request_key`).

    top_k: K, or one per sequence   exclude: per sequence the served indices never to return, or None
    tower: the engine that runs the model's user tower; the plain one when None
    delta: new items, which get the item indices after M, and deleted ones, which nobody gets
    exclude_new: per sequence the rows of new items never to return, or None
    Raises ValueError for an empty sequence or when the user tower gives NaN or infinity.
    """
    padded = pad(sequences, max_length=model.max_length)
    started, cpu_started = time.perf_counter(), time.thread_time()
    routes = (tower or EagerTower(model)).embed(padded, list(keys))  # (B, R, D)
    embedded, cpu_embedded = time.perf_counter(), time.thread_time()
    if delta is None:
        score, rows = _search(index, routes, top_k, exclude)
    else:
        wanted = [top_k] * len(routes) if isinstance(top_k, int) else list(top_k)

        def search(members: np.ndarray, counts: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
            return _search(index, routes[members], counts, exclude and [exclude[m] for m in members])

        score, rows = delta.search(search, routes, wanted, exclude_new)
    return Candidates(
        item_index=rows + 1,
        score=score,
        tower_seconds=embedded - started,
        search_seconds=time.perf_counter() - embedded,
        tower_cpu_seconds=cpu_embedded - cpu_started,
        search_cpu_seconds=time.thread_time() - cpu_embedded,
    )


def _search(
    index: AnnIndex,
    routes: np.ndarray,
    top_k: int | Collection[int],
    exclude: Collection[np.ndarray | None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """One search a route, merged.   routes: (B, R, D)   -> scores (B, K), rows (B, K)"""
    num_routes = routes.shape[1]
    wanted = top_k if isinstance(top_k, int) else [count for count in top_k for _ in range(num_routes)]
    rows_out = exclude and [
        None if items is None else items - 1 for items in exclude for _ in range(num_routes)
    ]
    score, rows = index.search(routes.reshape(-1, routes.shape[2]), wanted, rows_out)
    return merge_routes(score, rows, num_routes=num_routes, top_k=top_k)
