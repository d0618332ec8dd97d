"""The recall use case: whose sequence, which of its items are known, what to leave out, who answers.

A request takes one engine at its start and keeps it to its end, so that vocabulary, user tower, index
and the bundle named in the answer always belong together, whatever is swapped meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Collection
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

from model.batch import UNKNOWN_TIME, Sequence
from service.batcher import Batcher
from service.deadline import Deadline
from service.engine import Engine, EngineAnswer, EngineRequest
from service.errors import (
    DeadlineExceededError,
    EngineFailedError,
    InvalidFieldsError,
    NoBundleError,
    ShuttingDownError,
    StoreUnavailableError,
)
from service.metrics import Metrics
from service.packed_sequence import StoredSequence
from service.popular import ROUTE, popular_candidates
from service.schemas import Behaviour, Event, RecallRequest
from service.sequence_store import SequenceStore, StoredEvent
from service.settings import ServiceSettings

MAX_FUTURE_S = 86_400
"""How far ahead of this machine's clock an event may be: it leads its sequence until then."""
_NONE = StoredSequence([], [])


@dataclass(slots=True)
class Recalled:
    """One answer. timings: stage -> seconds; tower and search are those of the whole batch."""

    user_id: str
    bundle: str
    route: str
    item_ids: list[str]
    scores: list[float]
    degraded: bool = False
    reason: str | None = None
    shortfall: str | None = None
    timings: dict[str, float] = field(default_factory=dict)
    batch_size: int | None = None

    def document(self, request_id: str) -> dict[str, Any]:
        """The body of `schemas.RecallAnswer`."""
        document: dict[str, Any] = {
            "request_id": request_id,
            "user_id": self.user_id,
            "bundle": self.bundle,
            "route": self.route,
            "degraded": self.degraded,
            "candidates": [
                {"item_id": item_id, "score": score}
                for item_id, score in zip(self.item_ids, self.scores, strict=True)
            ],
        }
        if self.reason is not None:
            document["reason"] = self.reason
        if self.shortfall is not None:
            document["shortfall"] = self.shortfall
        return document


class RecallService:
    """Answers requests from a store and a swappable engine."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        store: SequenceStore,
        batcher: Batcher[EngineRequest, EngineAnswer],
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.store = store
        self.metrics = metrics
        self._batcher = batcher
        self._engine: Engine | None = None
        self.draining = False

    @property
    def engine(self) -> Engine:
        """What answers from now on. Raises NoBundleError before the first one is loaded."""
        if self._engine is None:
            raise NoBundleError("no bundle is loaded yet; publish one to the store or wait for the load")
        return self._engine

    def swap(self, engine: Engine) -> None:
        """Answer with `engine` from now on; requests under way keep the one they began with."""
        self._engine = engine
        manifest = engine.bundle.manifest
        self.metrics.set_bundle(
            {
                "bundle": engine.bundle.bundle_id,
                "model": engine.bundle.model_name,
                "index": manifest["index"]["kind"],
                "device": engine.device,
                "tower_engine": engine.tower.name,
            }
        )

    def check_ready(self) -> None:
        """Raises NoBundleError or ShuttingDownError unless requests are welcome."""
        if self.draining:
            raise ShuttingDownError("the service is shutting down; send requests to another instance")
        _ = self.engine

    @property
    def wedged(self) -> bool:
        """Whether the device thread is gone or has been in one batch for too long."""
        return not self._batcher.alive or self._batcher.busy_seconds > self.settings.wedge_timeout_s

    async def recall(self, request: RecallRequest, deadline: Deadline) -> Recalled:
        """Answer one request.

        Raises NoBundleError, QueueFullError, ShuttingDownError, and DeadlineExceededError when the
        settings ask for an error rather than the fallback.
        """
        engine = self.engine
        timings: dict[str, float] = {}
        behaviours = _NONE
        try:
            behaviours = await self._behaviours(request, deadline, timings)
            known, sequence = self._known_sequence(engine, behaviours)
            if sequence is None:
                reason = "unknown_items" if behaviours.item_ids else "no_history"
                recalled = _popular(engine, request, behaviours, reason=reason, degraded=False)
            else:
                exclude = _excluded_indices(engine, request, known)
                recalled = await self._from_model(engine, request, sequence, exclude, deadline, timings)
        except StoreUnavailableError as error:
            reason = f"store_{error.reason}"
            recalled = _popular(engine, request, behaviours, reason=reason, degraded=True)
        except EngineFailedError:
            recalled = _popular(engine, request, behaviours, reason="model", degraded=True)
        except DeadlineExceededError:
            if self.settings.on_deadline == "error":
                raise
            recalled = _popular(engine, request, behaviours, reason="deadline", degraded=True)
        recalled.timings = timings
        self._account(engine, request, recalled)
        return recalled

    async def append(self, events: Collection[Event], deadline: Deadline) -> int:
        """Store events; returns how many.

        Raises InvalidFieldsError, StoreUnavailableError or DeadlineExceededError.
        """
        now = int(time.time())
        for number, event in enumerate(events):
            if event.timestamp is not None and event.timestamp > now + MAX_FUTURE_S:
                raise _from_the_future(number, event.timestamp)
        stored = [
            StoredEvent(event.user_id, event.item_id, now if event.timestamp is None else event.timestamp)
            for event in events
        ]
        try:
            async with asyncio.timeout_at(deadline.at):
                await self.store.append(stored)
        except TimeoutError:
            raise DeadlineExceededError(
                "the deadline passed before the events were stored; repeat the call, repeats change nothing"
            ) from None
        except StoreUnavailableError as error:
            self.metrics.count_store_error("write", error.reason)
            raise
        self.metrics.events.inc(len(stored))
        return len(stored)

    async def _behaviours(
        self, request: RecallRequest, deadline: Deadline, timings: dict[str, float]
    ) -> StoredSequence:
        """The request's own sequence, else the stored one, else an empty one."""
        if request.sequence is not None:
            return _in_order(request.sequence)
        started = time.monotonic()
        try:
            stored = await self.store.read(request.user_id, deadline)
        except StoreUnavailableError as error:
            self.metrics.count_store_error("read", error.reason)
            if deadline.expired:
                raise DeadlineExceededError("the deadline passed before Redis answered") from None
            raise
        finally:
            timings["store"] = time.monotonic() - started
            self.metrics.observe_stage("store", timings["store"])
        return stored or _NONE

    def _known_sequence(
        self, engine: Engine, behaviours: StoredSequence
    ) -> tuple[np.ndarray, Sequence | None]:
        """The items of this bundle in it, and what the model can read of it: the latest of them."""
        # One pass in C each: this runs for every request, over up to `sequence_max_length` behaviours.
        found = list(map(engine.bundle.item_index_of.get, behaviours.item_ids, repeat(0)))
        known, timestamp = np.array(found, np.int64), np.array(behaviours.timestamps, np.int64)  # (N,)
        if 0 in found:
            there = known > 0
            known, timestamp = known[there], timestamp[there]
        if not len(known):
            return known, None
        now = int(time.time()) if self.settings.request_time == "now" else UNKNOWN_TIME
        latest = slice(-engine.bundle.model.max_length, None)
        return known, Sequence(known[latest], timestamp[latest], now)

    async def _from_model(
        self,
        engine: Engine,
        request: RecallRequest,
        sequence: Sequence,
        exclude: np.ndarray,
        deadline: Deadline,
        timings: dict[str, float],
    ) -> Recalled:
        asked = EngineRequest(request.user_id, request.seed, sequence, request.top_k, exclude)
        batched = await self._batcher.submit(engine, asked, deadline)
        answer = batched.answer
        timings["queue"] = batched.queue_seconds
        timings["tower"] = answer.tower_seconds
        timings["search"] = answer.search_seconds
        self.metrics.observe_stage("queue", batched.queue_seconds)
        return Recalled(
            user_id=request.user_id,
            bundle=engine.bundle.bundle_id,
            route=engine.bundle.model_name,
            item_ids=answer.item_ids,
            scores=answer.scores,
            batch_size=answer.batch_size,
        )

    def _account(self, engine: Engine, request: RecallRequest, recalled: Recalled) -> None:
        found = len(recalled.item_ids)
        if found < request.top_k:
            recalled.shortfall = (
                f"the catalogue has {len(engine.bundle.item_ids)} items, of which {found} are not excluded"
            )
        self.metrics.count_recall(
            recalled.route,
            fallback_reason=recalled.reason,
            degraded=recalled.degraded,
            short=recalled.shortfall is not None,
        )


def _excluded_indices(engine: Engine, request: RecallRequest, seen: np.ndarray) -> np.ndarray:
    """What of this bundle must not come back.   seen: (N,) item indices   -> (E,) served indices"""
    bundle = engine.bundle
    exclude = seen if request.exclude_seen else seen[:0]
    if request.exclude_item_ids:
        index_of = bundle.item_index_of
        asked = [index_of[item_id] for item_id in request.exclude_item_ids if item_id in index_of]
        exclude = np.concatenate([exclude, np.array(asked, np.int64)])
    if bundle.rows.served_index is None:
        return exclude
    exclude = bundle.rows.served(exclude)
    return exclude[exclude > 0]  # a retired item cannot come back


def _popular(
    engine: Engine, request: RecallRequest, behaviours: StoredSequence, *, reason: str, degraded: bool
) -> Recalled:
    excluded = set(request.exclude_item_ids)
    if request.exclude_seen:
        excluded.update(behaviours.item_ids)
    item_ids, scores = popular_candidates(engine.bundle, request.top_k, excluded)
    return Recalled(
        user_id=request.user_id,
        bundle=engine.bundle.bundle_id,
        route=ROUTE,
        item_ids=item_ids,
        scores=scores,
        degraded=degraded,
        reason=reason,
    )


def _in_order(sequence: Collection[Behaviour]) -> StoredSequence:
    """A caller's sequence as the store would keep it: by time, ties as given; as given without times."""
    if all(behaviour.timestamp is not None for behaviour in sequence):
        sequence = sorted(sequence, key=lambda behaviour: behaviour.timestamp or 0)
    return StoredSequence(
        [behaviour.item_id for behaviour in sequence],
        [UNKNOWN_TIME if b.timestamp is None else b.timestamp for b in sequence],
    )


def _from_the_future(number: int, timestamp: int) -> InvalidFieldsError:
    where = f"{number}.timestamp"
    problem = "is more than a day ahead of this server's clock"
    remedy = "send Unix seconds of when it happened"
    return InvalidFieldsError(
        f"{where}: {problem}, got {timestamp}; {remedy}",
        errors=[{"field": where, "value": str(timestamp), "problem": problem, "remedy": remedy}],
    )
