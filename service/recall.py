"""The recall use case: whose sequence, which of its items are known, what to leave out, who answers.

A request takes one engine at its start and keeps it to its end, so that vocabulary, user tower, index
and the bundle named in the answer always belong together, whatever is swapped meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from collections.abc import Sequence as Collection
from functools import partial

import numpy as np

from model.batch import UNKNOWN_TIME, Sequence
from service.arms import Arms, Taken
from service.batcher import Batched, Batcher
from service.comparisons import Answered, Ask, Comparisons
from service.deadline import Deadline
from service.degradation import SoftDegradation
from service.engine import Engine, EngineAnswer, EngineRequest
from service.errors import (
    DeadlineExceededError,
    EngineFailedError,
    InvalidFieldsError,
    InvalidHeaderError,
    NoBundleError,
    ServiceError,
    ShuttingDownError,
    StoreUnavailableError,
)
from service.exclusions import excluded_indices, excluded_new
from service.experiments import Experiment
from service.in_flight import InFlight
from service.metrics import Metrics
from service.packed_sequence import StoredSequence
from service.popular import popular_answer
from service.recalled import Recalled
from service.schemas import Behaviour, Event, RecallRequest
from service.sequence_store import SequenceStore, StoredEvent
from service.settings import ServiceSettings
from service.trace import Timings

MAX_FUTURE_S = 86_400
"""How far ahead of this machine's clock an event may be: it leads its sequence until then."""
_NONE = StoredSequence([], [])


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
        self.in_flight = InFlight(
            settings.max_queue + settings.max_batch,
            deadline_s=settings.deadline_ms / 1000,
            expected_wait_s=batcher.expected_wait_s,
        )
        self.degradation = SoftDegradation(
            enabled=settings.soft_degradation, on_level=metrics.degradation_level.set
        )
        self._engine: Engine | None = None
        self.arms: Arms | None = None
        self.comparisons = Comparisons()
        self.draining = False

    @property
    def engine(self) -> Engine:
        """What answers from now on, the control's in an experiment.

        Raises NoBundleError before the first one is loaded.
        """
        if self._engine is None:
            raise NoBundleError("no bundle is loaded yet; publish one to the store or wait for the load")
        return self._engine

    @property
    def bundle_id(self) -> str | None:
        """What answers from now on, or None before the first bundle is loaded."""
        return None if self._engine is None else self._engine.bundle.bundle_id

    def swap(self, engine: Engine) -> None:
        """Answer with `engine`, the current bundle's, from now on; in an experiment, in arms that name it.

        Requests under way keep the one they began with.
        """
        if self.arms is not None:
            self.arms.swap_current(engine)
            engine = self.arms.control.engine
        self._answer_with(engine)

    def run_experiment(self, experiment: Experiment | None, engines: Mapping[str, Engine]) -> None:
        """Let the arms of `experiment` answer from now on, or one engine alone.

        engines: bundle as the arms name it -> engine; without an experiment the one of `current`
        """
        self.metrics.arms.clear()
        if experiment is None:
            self.arms = None
            (engine,) = engines.values()
        else:
            self.arms = Arms(experiment, engines, self.metrics.arms)
            engine = self.arms.control.engine
        self._answer_with(engine)

    def refresh(self, served: Engine, engine: Engine) -> None:
        """Let `engine`, which is `served` with a newer delta, answer wherever that still does."""
        if self.arms is not None:
            self.arms.replace(served, engine)
        if self._engine is served:
            self._answer_with(engine)

    def engines(self) -> Collection[Engine]:
        """Every engine that answers, each once."""
        if self.arms is not None:
            return list(self.arms.engines())
        return [] if self._engine is None else [self._engine]

    def _answer_with(self, engine: Engine) -> None:
        self._engine = engine
        manifest = engine.bundle.manifest
        self.metrics.set_delta(engine.num_new_items, engine.num_deleted_items)
        self.metrics.set_bundle(
            {
                "bundle": engine.bundle.bundle_id,
                "model": engine.bundle.model_name,
                "index": manifest["index"]["kind"],
                "device": engine.device,
                "tower_engine": engine.tower.name,
            },
            manifest["created"],
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

    async def recall(
        self, request: RecallRequest, deadline: Deadline, arm_header: bytes | None = None
    ) -> Recalled:
        """Answer one request.   arm_header: X-Experiment-Arm, in place of the arm of the user's share

        Raises NoBundleError, QueueFullError, ShuttingDownError, InvalidHeaderError, and
        DeadlineExceededError when the settings ask for an error rather than the fallback.
        """
        with self.in_flight:
            return await self._recall(request, deadline, arm_header)

    async def _recall(self, request: RecallRequest, deadline: Deadline, arm_header: bytes | None) -> Recalled:
        taken = None
        if self.arms is not None or arm_header is not None:
            taken = self._take_arm(request.user_id, arm_header)
        engine = self.engine if taken is None else taken.engine
        timings = Timings()
        behaviours, sequence = _NONE, None
        try:
            behaviours = await self._behaviours(request, deadline, timings)
            known, sequence = self.known_sequence(engine, behaviours)
            if sequence is None:
                reason = "unknown_items" if len(behaviours) else "no_history"
                recalled = popular_answer(engine, request, behaviours, reason=reason, degraded=False)
            elif self.degradation.prefers_popular(self.in_flight.pressure):
                recalled = popular_answer(engine, request, behaviours, reason="load", degraded=True)
            else:
                exclude = excluded_indices(engine.bundle, request, known)
                exclude_new = (
                    None if engine.delta is None else excluded_new(engine.delta, request, behaviours)
                )
                asked = EngineRequest(
                    request.user_id, request.seed, sequence, request.top_k, exclude, exclude_new, deadline
                )
                recalled = await self._from_model(engine, asked, deadline, timings)
        except StoreUnavailableError as error:
            reason = f"store_{error.reason}"
            recalled = popular_answer(engine, request, behaviours, reason=reason, degraded=True)
        except EngineFailedError as error:
            recalled = popular_answer(engine, request, behaviours, reason=error.reason, degraded=True)
        except DeadlineExceededError as error:
            if self.settings.on_deadline == "error":
                error.bundle = engine.bundle.bundle_id
                raise
            recalled = popular_answer(engine, request, behaviours, reason="deadline", degraded=True)
        except ServiceError as error:
            error.bundle = engine.bundle.bundle_id
            raise
        recalled.timings = timings
        self._account(engine, request, recalled)
        if taken is not None:
            now = UNKNOWN_TIME if sequence is None else sequence.request_time
            self._note_arm(taken, recalled, partial(self._ask_when_idle, request, behaviours, now))
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

    def _take_arm(self, user_id: str, header: bytes | None) -> Taken:
        if self.arms is None:
            raise InvalidHeaderError("X-Experiment-Arm: no experiment runs here; leave the header out")
        return self.arms.take(user_id, header)

    def _note_arm(self, taken: Taken, recalled: Recalled, ask: Ask) -> None:
        """Say which arm answered, count it, and have it compared once the answer is on its way."""
        arms, arm, _, by = taken
        recalled.experiment, recalled.arm = arms.experiment.name, arm.settings.name
        arm.metrics.count_recall(by, timings=recalled.timings, fallback_reason=recalled.fallback)
        if recalled.reason is not None:
            return
        chosen = arms.comparisons(arm)
        if chosen:
            answered = Answered(recalled.candidates, ask)
            recalled.afterwards = partial(self.comparisons.begin, chosen, answered)

    async def _ask_when_idle(
        self,
        request: RecallRequest,
        behaviours: StoredSequence,
        request_time: int,
        engine: Engine,
        deadline: Deadline,
    ) -> Batched[EngineAnswer] | None:
        """What another engine says to a request that was answered; None when it knows none of its items."""
        known, sequence = self.known_sequence(engine, behaviours)
        if sequence is None:
            return None
        sequence = sequence._replace(request_time=request_time)
        exclude = excluded_indices(engine.bundle, request, known)
        asked = EngineRequest(request.user_id, request.seed, sequence, request.top_k, exclude)
        return await self._batcher.submit_when_idle(engine, asked, deadline)

    async def _behaviours(
        self, request: RecallRequest, deadline: Deadline, timings: Timings
    ) -> StoredSequence:
        """The request's own sequence, else the stored one, else an empty one."""
        if deadline.expired:
            raise DeadlineExceededError("the deadline passed before the request was there")
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
        except DeadlineExceededError:
            self.metrics.count_store_error("read", "timeout")
            raise
        finally:
            timings.note("store", started, time.monotonic() - started)
            self.metrics.observe_stage("store", timings["store"])
        return stored or _NONE

    def known_sequence(
        self, engine: Engine, behaviours: StoredSequence
    ) -> tuple[np.ndarray, Sequence | None]:
        """The items of this bundle in it, and what the model can read of it: the latest of them."""
        known, timestamp = engine.known(behaviours)
        if not len(known):
            return known, None
        now = int(time.time()) if self.settings.request_time == "now" else UNKNOWN_TIME
        latest = slice(-engine.bundle.model.max_length, None)
        return known, Sequence(known[latest], timestamp[latest], now)

    async def _from_model(
        self,
        engine: Engine,
        asked: EngineRequest,
        deadline: Deadline,
        timings: Timings,
    ) -> Recalled:
        at = time.monotonic()
        batched = await self._batcher.submit(engine, asked, deadline)
        answer = batched.answer
        for stage, seconds in (
            ("queue", batched.queue_seconds),
            ("tower", answer.tower_seconds),
            ("search", answer.search_seconds),
        ):
            timings.note(stage, at, seconds)
            at += seconds
        self.metrics.observe_stage("queue", batched.queue_seconds)
        if answer.num_steps is not None:
            self.metrics.count_fewer_steps(answer.num_steps)
        return Recalled(
            user_id=asked.user_id,
            bundle=engine.bundle.bundle_id,
            route=engine.bundle.model_name,
            candidates=answer.candidates,
            batch_size=answer.batch_size,
            degraded=answer.num_steps is not None,
            reason=None if answer.num_steps is None else f"steps_{answer.num_steps}",
        )

    def _account(self, engine: Engine, request: RecallRequest, recalled: Recalled) -> None:
        found = len(recalled.candidates)
        if found < request.top_k:
            recalled.shortfall = (
                f"the catalogue has {engine.num_items} items, of which {found} are not excluded"
            )
        self.metrics.count_recall(
            recalled.route,
            fallback_reason=recalled.fallback,
            degraded=recalled.degraded,
            short=recalled.shortfall is not None,
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
