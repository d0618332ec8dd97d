"""One thread owns the device; requests that wait for it at the same moment share a batch.

There is no timer: a request that finds the device idle runs at once, and while the device is busy what
queues up is the next batch. The queue is bounded (429). A request whose caller went away, whose deadline
passed, or whose deadline lies nearer than a batch has lately taken leaves the queue without taking a
place in a batch: under overload the device works only on what can still be in time. Members of a batch
share one engine, hence one bundle: the oldest request says which, and those of its engine join it from
wherever they stand in the queue. So arms that alternate still make full batches, and none of them starves.

What nobody waits for (another arm's answer, for comparison) runs one at a time, while no request waits, in
a quarter of the device's time at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from service.deadline import Deadline
from service.errors import DeadlineExceededError, EngineFailedError, QueueFullError, ShuttingDownError

logger = logging.getLogger("t2diff.batcher")
_ESTIMATE_WEIGHT = 0.25
_AT_ONCE = 8
"""Answers that are handed over in one turn of the event loop."""
_LOOK_AHEAD = 1024
"""How many places of the queue are searched for members of one batch; it is locked meanwhile."""
MAX_IDLE_QUEUE = 64
_IDLE_SHARE = 0.25
"""Of the device's time: a request finds it busy with what nobody waits for no more often than that."""

Request = TypeVar("Request", contravariant=True)
Answer = TypeVar("Answer", covariant=True)
Result = TypeVar("Result")


class BatchEngine(Protocol[Request, Answer]):
    """What can run a batch: as many answers as requests, in their order; an exception fails one alone."""

    def recall(self, requests: Sequence[Request], /) -> Sequence[Answer | Exception]: ...


class Batched(NamedTuple, Generic[Answer]):
    """An answer and how long its request waited for the device, in seconds."""

    answer: Answer
    queue_seconds: float


@dataclass(eq=False, slots=True)
class _Entry:
    engine: Any
    request: Any
    deadline: Deadline
    enqueued: float
    future: asyncio.Future[Any]


class Batcher(Generic[Request, Answer]):
    """Starts its thread on construction; `close` ends it."""

    def __init__(
        self,
        *,
        max_batch: int,
        max_queue: int,
        on_thread_start: Callable[[], None] | None = None,
        on_batch: Callable[[Sequence[Any]], None] | None = None,
    ) -> None:
        """on_thread_start, on_batch (given the answers of each batch): called on the device thread."""
        self._loop = asyncio.get_running_loop()
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._on_thread_start = on_thread_start
        self._on_batch = on_batch
        self._wake = threading.Condition()
        self._queue: deque[_Entry] = deque()
        self._idle_queue: deque[_Entry] = deque()  # runs while `_queue` is empty, not before `_idle_from`
        self._idle_from = 0.0
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._closing = False
        self._busy_since: float | None = None
        self._expected_seconds = 0.0  # a running estimate of the next batch's time; set by the device thread
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests that wait for the device."""
        return len(self._queue)

    def expected_wait_s(self, ahead: int) -> float:
        """How long the device will take for the full batches among `ahead` requests, as it has lately."""
        return ahead // self._max_batch * self._expected_seconds

    @property
    def busy_seconds(self) -> float:
        """How long the present batch has been running; 0 when idle. Liveness watches it."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def alive(self) -> bool:
        """Whether the device thread runs."""
        return self._thread.is_alive()

    async def submit(
        self, engine: BatchEngine[Request, Answer], request: Request, deadline: Deadline
    ) -> Batched[Answer]:
        """Run `request` on `engine`.

        Raises QueueFullError, DeadlineExceededError, ShuttingDownError, or EngineFailedError when its
        batch raised.
        """
        entry = _Entry(engine, request, deadline, time.monotonic(), self._loop.create_future())
        if deadline.at <= entry.enqueued:
            raise _late()
        with self._wake:
            if self._closing:
                raise ShuttingDownError("the service is shutting down; send the request to another instance")
            if len(self._queue) >= self._max_queue:
                raise QueueFullError(self._max_queue)
            self._queue.append(entry)
            self._wake.notify()
        timer = self._loop.call_at(deadline.at, self._expire, entry)
        try:
            return await entry.future
        except asyncio.CancelledError:
            self._forget(entry)  # its caller left: free the place
            raise
        finally:
            timer.cancel()

    async def submit_when_idle(
        self, engine: BatchEngine[Request, Answer], request: Request, deadline: Deadline
    ) -> Batched[Answer]:
        """Run `request` on `engine` alone, once no request waits for the device; `on_batch` does not see it.

        A request that arrives meanwhile waits for this one computation. Raises as `submit` does: it is too
        late when the device found no time before the deadline.
        """
        entry = _Entry(engine, request, deadline, time.monotonic(), self._loop.create_future())
        with self._wake:
            if self._closing:
                raise ShuttingDownError("the service is shutting down")
            if len(self._idle_queue) >= MAX_IDLE_QUEUE:
                raise QueueFullError(MAX_IDLE_QUEUE)
            self._idle_queue.append(entry)
            self._wake.notify()
        try:
            async with asyncio.timeout_at(deadline.at):
                return await entry.future
        except TimeoutError:
            raise _late() from None
        finally:
            with self._wake, contextlib.suppress(ValueError):
                self._idle_queue.remove(entry)  # it may hold the last reference to an engine

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the device thread, between two batches."""
        future: asyncio.Future[Result] = self._loop.create_future()
        with self._wake:
            if self._closing:
                raise ShuttingDownError("the service is shutting down")
            self._calls.append((function, future))
            self._wake.notify()
        return await future

    async def close(self, timeout_s: float = 5.0) -> None:
        """Answer what is queued, then end the thread; what is left after `timeout_s` fails."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, timeout_s)
        error = ShuttingDownError("the service shut down before this request had its turn")
        with self._wake:
            futures = [entry.future for entry in [*self._queue, *self._idle_queue]]
            futures += [future for _, future in self._calls]
            self._queue.clear()
            self._idle_queue.clear()
            self._calls.clear()
        _deliver([(future, None, error) for future in futures])

    def _expire(self, entry: _Entry) -> None:
        if not entry.future.done():
            self._forget(entry)
            entry.future.set_exception(_late())

    def _forget(self, entry: _Entry) -> None:
        with self._wake, contextlib.suppress(ValueError):
            self._queue.remove(entry)

    # Below: the device thread.

    def _run(self) -> None:
        if self._on_thread_start is not None:
            self._on_thread_start()
        ended = 0.0
        while True:
            with self._wake:
                at_once = bool(self._queue)
                while not (self._queue or self._calls or self._closing):
                    rest = self._idle_from - time.monotonic() if self._idle_queue else None
                    if rest is not None and rest <= 0:
                        break
                    self._wake.wait(rest)
                if self._closing and not (self._queue or self._calls):
                    return
                idle = not (self._queue or self._calls)
                call = self._calls.popleft() if self._calls else None
                batch, expired = ([], []) if call else self._take_idle() if idle else self._take()
                started = time.monotonic()
                self._busy_since = started if batch else None
            between = started - ended if at_once and ended else 0.0  # the event loop's share of the processor
            outcomes: list[_Outcome] = [(entry.future, None, _late()) for entry in expired]
            on_batch = None if idle else self._on_batch
            outcomes += _run_call(*call) if call else _run_batch(batch, started, on_batch)
            ended = time.monotonic()
            if idle:
                self._idle_from = ended + (ended - started) * (1 / _IDLE_SHARE - 1)
            else:
                self._learn(ended - started + between if batch else None, turned_away=len(expired))
            del call, batch, expired  # hold no engine while idle: a swapped one must be free to go
            self._busy_since = None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_deliver, outcomes)
            del outcomes

    def _learn(self, batch_seconds: float | None, *, turned_away: int) -> None:
        """Update the estimate; when it turned everybody away it shrinks, to forget one slow batch."""
        if batch_seconds is not None:
            self._expected_seconds += _ESTIMATE_WEIGHT * (batch_seconds - self._expected_seconds)
        elif turned_away:
            self._expected_seconds /= 2

    def _take(self) -> tuple[list[_Entry], list[_Entry]]:
        """The next batch: the oldest request and those of its engine, oldest first, without the expired."""
        batch: list[_Entry] = []
        expired: list[_Entry] = []
        others: list[_Entry] = []  # of other engines: they go back to the head, in their order
        in_time = time.monotonic() + self._expected_seconds
        while self._queue and len(batch) < self._max_batch and len(others) < _LOOK_AHEAD:
            entry = self._queue.popleft()
            if entry.future.done():
                continue
            if entry.deadline.at <= in_time:
                expired.append(entry)
            elif batch and entry.engine is not batch[0].engine:
                others.append(entry)
            else:
                batch.append(entry)
        self._queue.extendleft(reversed(others))
        return batch, expired

    def _take_idle(self) -> tuple[list[_Entry], list[_Entry]]:
        """The oldest of what nobody waits for, alone."""
        while self._idle_queue:
            entry = self._idle_queue.popleft()
            if not entry.future.done():
                return [entry], []
        return [], []


_Outcome = tuple[asyncio.Future[Any], Any, Exception | None]


def _run_batch(
    batch: list[_Entry], started: float, on_batch: Callable[[Sequence[Any]], None] | None
) -> list[_Outcome]:
    if not batch:
        return []
    try:
        answers = batch[0].engine.recall([entry.request for entry in batch])
        if len(answers) != len(batch):
            raise RuntimeError(f"the engine gave {len(answers)} answers for {len(batch)} requests")
        computed = [answer for answer in answers if not isinstance(answer, Exception)]
        if on_batch is not None and computed:
            on_batch(computed)
    except DeadlineExceededError:  # of every member: most have been told by their timers
        return [(entry.future, None, _late()) for entry in batch]
    except BaseException as error:  # whatever it was, the waiters must hear of it and the thread goes on
        bundle = getattr(getattr(batch[0].engine, "bundle", None), "bundle_id", None)
        logger.exception("a batch failed", extra={"bundle": bundle, "batch_size": len(batch)})
        return [
            (e.future, None, EngineFailedError(f"the model failed: {type(error).__name__}")) for e in batch
        ]
    return [
        (entry.future, None, answer)
        if isinstance(answer, Exception)
        else (entry.future, Batched(answer, started - entry.enqueued), None)
        for entry, answer in zip(batch, answers, strict=True)
    ]


def _run_call(function: Callable[[], Any], future: asyncio.Future[Any]) -> list[_Outcome]:
    try:
        return [(future, function(), None)]
    except Exception as error:
        return [(future, None, error)]
    except BaseException as error:
        return [(future, None, RuntimeError(f"{type(error).__name__} on the device thread"))]


def _late() -> DeadlineExceededError:
    return DeadlineExceededError("the deadline passed before the model could answer")


def _deliver(outcomes: list[_Outcome]) -> None:
    """On the event loop: hand every waiter its result or its exception, a few in a turn of the loop.

    What each does with it takes a tenth of a millisecond, during which nobody else is heard.
    """
    if len(outcomes) > _AT_ONCE:
        outcomes[0][0].get_loop().call_soon(_deliver, outcomes[_AT_ONCE:])
    for future, result, error in outcomes[:_AT_ONCE]:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
