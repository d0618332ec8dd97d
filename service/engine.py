"""One bundle that answers, on CPU or CUDA. Immutable; its user tower runs on the engine that it is given.

It is called on the device thread only. What it computes is `index_builder.candidates`, the code that
recorded the bundle's canary, so that a loaded bundle can be held to the answers of its build.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Collection
from typing import NamedTuple

import numpy as np
import torch

from index_builder.ann import set_num_threads
from index_builder.bundle import Bundle
from index_builder.canary import replay_canary
from index_builder.candidates import recall_sequences
from index_builder.delta import Delta
from index_builder.delta_index import DeltaIndex, build_delta_index
from model.batch import UNKNOWN_TIME, Sequence
from model.engines.interface import EagerTower
from model.engines.tower_engine import TowerEngine, build_tower_engine
from model.noise import request_key
from service.settings import ServiceSettings


class EngineRequest(NamedTuple):
    """One user to recall for.

    sequence: not empty, of this bundle's item indices   exclude: its served indices never to return
    exclude_new: rows of the engine's delta never to return
    """

    user_id: str
    seed: int
    sequence: Sequence
    top_k: int
    exclude: np.ndarray
    exclude_new: np.ndarray | None = None


class EngineAnswer(NamedTuple):
    """Candidates best first, fewer than top_k only when no more are allowed; times are the batch's.

    tower_seconds, search_seconds: wall time   ..._cpu_seconds: processor time of the device thread
    """

    item_ids: list[str]
    scores: list[float]
    tower_seconds: float
    search_seconds: float
    batch_size: int
    tower_cpu_seconds: float = 0.0
    search_cpu_seconds: float = 0.0


class Engine:
    """A bundle that answers.

    delta: the store's newer and deleted items as this bundle sees them, or None when there are none
    delta_version: names the delta, empty or not
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str,
        tower: TowerEngine | None = None,
        canary_tower: TowerEngine | None = None,
    ) -> None:
        """tower: what runs the user tower, by default plainly

        canary_tower: the same engine as the bundle was built to sample, where `tower` samples otherwise
        """
        self.bundle = bundle
        self.device = device
        self.tower = tower or EagerTower(bundle.model)
        self._canary_tower = canary_tower or self.tower
        # Where the bundle holds a string per item anyway, reading one is a hundred times cheaper from a list.
        known, served = bundle.item_index_of, bundle.rows.item_index
        self._item_ids: Collection[str] = bundle.item_ids
        if isinstance(known, dict):
            names = list(known)
            self._item_ids = names if served is None else [names[item - 1] for item in served.tolist()]
        self.delta: DeltaIndex | None = None
        self.delta_version = "none"

    def with_delta(self, delta: Delta) -> Engine:
        """Another engine on the same bundle and tower, which answers with `delta`; this one stays."""
        changed = copy.copy(self)
        changed.delta = build_delta_index(delta, self.bundle)
        changed.delta_version = delta.version
        return changed

    @property
    def num_new_items(self) -> int:
        """Items that can be recalled though the bundle does not hold them."""
        return 0 if self.delta is None else len(self.delta.item_ids)

    @property
    def num_deleted_items(self) -> int:
        """Items that must not be recalled, whether the bundle holds them or not."""
        return 0 if self.delta is None else len(self.delta.deleted)

    @property
    def num_items(self) -> int:
        """Items that can be recalled."""
        gone = 0 if self.delta is None else len(self.delta.deleted_rows)
        return len(self.bundle.item_ids) + self.num_new_items - gone

    def recall(self, requests: Collection[EngineRequest]) -> list[EngineAnswer]:
        """Answers in the order of the requests. Raises ValueError for a NaN in the user tower."""
        bundle, delta = self.bundle, self.delta
        item_ids = self._item_ids if delta is None else _OldAndNew(self._item_ids, delta)
        found = recall_sequences(
            bundle.model,
            bundle.index,
            [request.sequence for request in requests],
            [request_key(request.seed, request.user_id) for request in requests],
            top_k=[request.top_k for request in requests],
            exclude=[request.exclude for request in requests],
            tower=self.tower,
            delta=delta,
            exclude_new=None if delta is None else [request.exclude_new for request in requests],
        )
        real = found.item_index > 0  # (B, K)
        if not np.array_equal(np.isfinite(found.score), real):
            raise ValueError("the search gave a score that is not a number")
        counts = np.minimum(real.sum(axis=1), [request.top_k for request in requests]).tolist()
        answers = []
        rows = (found.item_index - 1).tolist()
        for count, of_user, scores in zip(counts, rows, found.score.tolist(), strict=True):
            answers.append(
                EngineAnswer(
                    item_ids=list(map(item_ids.__getitem__, of_user[:count])),
                    scores=scores[:count],
                    tower_seconds=found.tower_seconds,
                    search_seconds=found.search_seconds,
                    batch_size=len(requests),
                    tower_cpu_seconds=found.tower_cpu_seconds,
                    search_cpu_seconds=found.search_cpu_seconds,
                )
            )
        return answers

    def warm_up(self, max_batch: int) -> None:
        """Run batches of every size up to `max_batch`, doubling, then the canary.

        Raises BundleError when this machine does not reproduce the answers recorded with the bundle.
        """
        bundle = self.bundle
        sequences = [case.sequence for case in bundle.canary] or [_shortest_sequence()]
        size = 1
        while size <= max_batch:
            batch = [
                EngineRequest(f"warm-up-{n}", 0, sequences[n % len(sequences)], 1, np.empty(0, np.int64))
                for n in range(size)
            ]
            self.recall(batch)
            size *= 2
        replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary, tower=self._canary_tower)


class _OldAndNew:
    """Item ids by row: the bundle's, then the delta's."""

    def __init__(self, item_ids: Collection[str], delta: DeltaIndex) -> None:
        self._item_ids = item_ids
        self._new_ids = delta.item_ids
        self._num_rows = delta.num_rows

    def __getitem__(self, row: int) -> str:
        return self._item_ids[row] if row < self._num_rows else self._new_ids[row - self._num_rows]


def build_engine(bundle: Bundle, *, device: str, settings: ServiceSettings) -> Engine:
    """The engine of a loaded bundle as the settings want it.

    Raises ValueError when the user tower cannot run on the engine or with the sampling asked for.
    """
    kind, threads = settings.tower_engine, settings.torch_threads
    steps, sampler = settings.num_inference_steps, settings.sampler
    tower = build_tower_engine(
        bundle.model, kind=kind, num_inference_steps=steps, sampler=sampler, num_threads=threads
    )
    canary_tower = None
    if steps is not None or sampler is not None:
        canary_tower = build_tower_engine(bundle.model, kind=kind, num_threads=threads)
    return Engine(bundle, device=device, tower=tower, canary_tower=canary_tower)


def choose_device(asked: str) -> str:
    """`auto` -> cuda where there is a GPU. Raises ValueError when CUDA is asked for and absent."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no GPU here; use cpu or auto")
    return asked


def set_threads(count: int) -> None:
    """How many cores torch and the index may use; called on each thread that computes.

    Their defaults ignore cgroup quotas, and too many threads on a loaded machine cost tenfold.
    """
    torch.set_num_threads(count)
    set_num_threads(count)


def _shortest_sequence() -> Sequence:
    return Sequence(np.ones(1, np.int64), np.full(1, UNKNOWN_TIME, np.int64))
