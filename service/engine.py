"""One bundle that answers, on CPU or CUDA. Immutable; its user tower runs on the engine that it is given.

It is called on the device thread only. What it computes is `index_builder.candidates`, the code that
recorded the bundle's canary, so that a loaded bundle can be held to the answers of its build.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence as Collection
from typing import Any, NamedTuple

import numpy as np
import torch

from index_builder.ann import AnnIndex, SearchFailedError, set_num_threads
from index_builder.bundle import Bundle
from index_builder.canary import replay_canary
from index_builder.candidates import recall_sequences
from index_builder.delta import Delta
from index_builder.delta_index import DeltaIndex, build_delta_index
from model.batch import UNKNOWN_TIME, Sequence
from model.engines.interface import EagerTower
from model.engines.tower_engine import TowerEngine, build_tower_engine
from model.noise import request_key
from service.batch_memory import BatchMemory
from service.bundle_items import BundleItems
from service.candidate_list import CandidateList
from service.deadline import Deadline
from service.degradation import Levels, SoftDegradation, build_levels
from service.errors import EngineFailedError
from service.packed_sequence import StoredSequence
from service.settings import ServiceSettings
from service.watched_tower import WatchedTower
from service.wire_format import native_items

logger = logging.getLogger("t2diff.engine")


class EngineRequest(NamedTuple):
    """One user to recall for.

    sequence: not empty, of this bundle's item indices   exclude: its served indices never to return
    exclude_new: rows of the engine's delta never to return   deadline: after it nobody wants the answer
    """

    user_id: str
    seed: int
    sequence: Sequence
    top_k: int
    exclude: np.ndarray
    exclude_new: np.ndarray | None = None
    deadline: Deadline | None = None


class EngineAnswer(NamedTuple):
    """Candidates, fewer than top_k only when no more are allowed; times are the batch's.

    tower_seconds, search_seconds: wall time   ..._cpu_seconds: processor time of the device thread
    num_steps: of diffusion, where they were fewer than set
    """

    candidates: CandidateList
    tower_seconds: float
    search_seconds: float
    batch_size: int
    tower_cpu_seconds: float = 0.0
    search_cpu_seconds: float = 0.0
    num_steps: int | None = None


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
        levels: Levels | None = None,
        degradation: SoftDegradation | None = None,
        memory: BatchMemory | None = None,
        search_timeout_s: float = math.inf,
        items: BundleItems | None = None,
    ) -> None:
        """tower: what runs the user tower, by default plainly

        canary_tower: the same engine as the bundle was built to sample, where `tower` samples otherwise
        levels: of soft degradation, the first being `tower`   degradation: says which of them runs
        memory: of the device, shared by its engines
        search_timeout_s: for one call of an index on other hosts, once it is warm
        items: the bundle's; Python reads and writes them when None
        """
        self.bundle = bundle
        self.device = device
        self.tower = tower or EagerTower(bundle.model)
        self._canary_tower = canary_tower or self.tower
        self._levels: Levels = levels or [(None, self.tower)]
        self._degradation = degradation or SoftDegradation(enabled=False)
        self._memory = memory or BatchMemory()
        self._search_timeout_s = search_timeout_s
        self._items = items or BundleItems(bundle)
        self.delta: DeltaIndex | None = None
        self.delta_version = "none"

    def with_delta(self, delta: Delta) -> Engine:
        """Another engine on the same bundle and tower, which answers with `delta`; this one stays."""
        changed = copy.copy(self)
        index = build_delta_index(delta, self.bundle)
        changed.delta, changed.delta_version = index, delta.version
        if index is not None:
            changed._items = self._items.with_added(index.item_ids)
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

    def known(self, behaviours: StoredSequence) -> tuple[np.ndarray, np.ndarray]:
        """The behaviours with items that the model knows.   -> item indices (N,), timestamps (N,), int64"""
        return self._items.known(behaviours)

    def recall(self, requests: Collection[EngineRequest]) -> list[EngineAnswer | EngineFailedError]:
        """Answers in the order of the requests, or why there is none for one of them.

        Raises ValueError when the user tower gives NaN for everybody, DeadlineExceededError when after it
        nobody waits any more. Without memory for all of them, they are computed in smaller batches.
        """
        level = min(self._degradation.level, len(self._levels) - 1)
        return self._within_memory(requests, *self._levels[level])

    def _within_memory(
        self, requests: Collection[EngineRequest], num_steps: int | None, tower: TowerEngine
    ) -> list[EngineAnswer | EngineFailedError]:
        answers: list[EngineAnswer | EngineFailedError] = []
        while len(answers) < len(requests):
            size = self._memory.largest(len(requests) - len(answers))
            some = requests[len(answers) : len(answers) + size]
            try:
                answers += self._answers(some, num_steps, tower)
                continue
            except torch.OutOfMemoryError:
                logger.warning("no memory for a batch", extra={"batch_size": size, **self._named()})
                self._memory.did_not_fit(size)
                if size == 1:
                    answers.append(EngineFailedError("the device has no memory for this request"))
            if self.device == "cuda":  # outside the handler, which still holds what did not fit
                torch.cuda.empty_cache()
        return answers

    def _answers(
        self, requests: Collection[EngineRequest], num_steps: int | None, tower: TowerEngine
    ) -> list[EngineAnswer | EngineFailedError]:
        bundle, delta = self.bundle, self.delta
        watched = WatchedTower(tower, [request.deadline for request in requests])
        try:
            found = recall_sequences(
                bundle.model,
                self._index_for(requests),
                [request.sequence for request in requests],
                [request_key(request.seed, request.user_id) for request in requests],
                top_k=[request.top_k for request in requests],
                exclude=[request.exclude for request in requests],
                tower=watched,
                delta=delta,
                exclude_new=None if delta is None else [request.exclude_new for request in requests],
            )
        except SearchFailedError as error:
            if error.asked:
                logger.warning("the index gave no answer", extra={"reason": str(error), **self._named()})
            return [EngineFailedError(f"the index failed: {error}", reason="index") for _ in requests]
        real = found.item_index > 0  # (B, K)
        padded_last = (real[:, 1:] <= real[:, :-1]).all(axis=1)  # (B,)
        sound = (np.isfinite(found.score) == real).all(axis=1) & padded_last & watched.finite
        if not sound.all():
            logger.error("answers that are no numbers", extra={"of": int((~sound).sum()), **self._named()})
        counts = np.minimum(real.sum(axis=1), [request.top_k for request in requests]) * sound  # (B,)
        listed = self._items.listed(found.item_index - 1, found.score, counts)
        return [
            EngineAnswer(
                candidates=candidates,
                tower_seconds=found.tower_seconds,
                search_seconds=found.search_seconds,
                batch_size=len(requests),
                tower_cpu_seconds=found.tower_cpu_seconds,
                search_cpu_seconds=found.search_cpu_seconds,
                num_steps=num_steps,
            )
            if is_sound
            else EngineFailedError("the model gave a score that is not a number")
            for is_sound, candidates in zip(sound.tolist(), listed, strict=True)
        ]

    def _index_for(self, requests: Collection[EngineRequest]) -> AnnIndex:
        """The bundle's; one on other hosts has as long as somebody of the batch waits."""
        ends = (math.inf if request.deadline is None else request.deadline.at for request in requests)
        return self.bundle.index.within(self._search_timeout_s, max(ends, default=math.inf))

    def _named(self) -> dict[str, Any]:
        return {"bundle": self.bundle.bundle_id}

    def warm_up(self, max_batch: int) -> None:
        """Run batches of every size up to `max_batch`, doubling, on every level, then the canary.

        Raises BundleError when this machine does not reproduce the answers recorded with the bundle.
        """
        bundle = self.bundle
        patient = copy.copy(self)
        patient._search_timeout_s = math.inf
        sequences = [case.sequence for case in bundle.canary] or [_shortest_sequence()]
        size = 1
        while size <= max_batch:
            batch = [
                EngineRequest(f"warm-up-{n}", 0, sequences[n % len(sequences)], 1, np.empty(0, np.int64))
                for n in range(size)
            ]
            for level in dict.fromkeys(self._levels):
                patient._within_memory(batch, *level)
            size *= 2
        replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary, tower=self._canary_tower)


def build_engine(
    bundle: Bundle,
    *,
    device: str,
    settings: ServiceSettings,
    degradation: SoftDegradation | None = None,
    memory: BatchMemory | None = None,
) -> Engine:
    """The engine of a loaded bundle as the settings want it.   degradation, memory: as of `Engine`

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
    model = bundle.model
    built_steps = bundle.manifest["model"]["config"].get("num_inference_steps") or model.num_steps
    own_steps = (steps or built_steps) if model.num_steps else 0
    return Engine(
        bundle,
        device=device,
        tower=tower,
        canary_tower=canary_tower,
        levels=build_levels(model, tower, own_steps=own_steps, settings=settings),
        degradation=degradation,
        memory=memory,
        search_timeout_s=settings.milvus_timeout_ms / 1000,
        items=BundleItems(bundle, native_items(bundle)),
    )


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
