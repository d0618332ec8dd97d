"""The batcher under any order of events: who asks which engine, who leaves, when the device runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batched, Batcher
from service.deadline import Deadline
from service.errors import DeadlineExceededError, EngineFailedError, QueueFullError

MAX_BATCH, MAX_QUEUE = 4, 6
FAR = 3600.0


class Ask(NamedTuple):
    """A request.   expired: its deadline lies in the past   fails: its engine fails it alone"""

    engine: int
    expired: bool
    fails: bool


class Leave(NamedTuple):
    """The caller of request number `which` (of those so far) goes away."""

    which: int


class Run(NamedTuple):
    """The device may take so many batches."""

    batches: int


asks = st.builds(
    Ask, st.integers(0, 2), st.integers(0, 9).map(lambda n: n == 0), st.integers(0, 9).map(lambda n: n == 0)
)
steps = st.lists(
    st.one_of(*[asks] * 6, st.builds(Leave, st.integers(0, 40)), st.builds(Run, st.integers(1, 2))),
    min_size=5,
    max_size=40,
)


class Stepped:
    """An engine that runs a batch only when the test lets it; notes what it ran."""

    def __init__(self, number: int, allowed: threading.Semaphore, log: list[tuple[int, list[int]]]) -> None:
        self.number, self._allowed, self._log = number, allowed, log

    def recall(self, requests: Sequence[tuple[int, bool]]) -> Sequence[Any]:
        assert self._allowed.acquire(timeout=20)
        self._log.append((self.number, [number for number, _ in requests]))
        return [
            EngineFailedError(f"{number}") if fails else (self.number, number) for number, fails in requests
        ]


@settings(max_examples=150, deadline=None)
@given(steps)
def test_whatever_happens_everybody_gets_what_is_theirs_once_and_in_order(steps: list[Any]) -> None:
    asyncio.run(_scenario(steps))


async def _scenario(steps: list[Any]) -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=MAX_BATCH, max_queue=MAX_QUEUE)
    allowed = threading.Semaphore(0)
    log: list[tuple[int, list[int]]] = []
    engines = [Stepped(number, allowed, log) for number in range(3)]
    asked: list[Ask] = []
    tasks: list[asyncio.Task[Batched[Any]]] = []
    left: set[int] = set()
    for step in steps:
        if isinstance(step, Ask):
            deadline = Deadline(time.monotonic() + (-1.0 if step.expired else FAR))
            request = (len(tasks), step.fails)
            tasks.append(asyncio.create_task(batcher.submit(engines[step.engine], request, deadline)))
            asked.append(step)
        elif isinstance(step, Leave) and step.which < len(tasks):
            if tasks[step.which].cancel():
                left.add(step.which)
        elif isinstance(step, Run):
            for _ in range(step.batches):
                allowed.release()
        await asyncio.sleep(0)
        assert batcher.depth <= MAX_QUEUE
    for _ in range(len(tasks) + 1):
        allowed.release()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    await batcher.close()
    _check(asked, left, results, log)


def _check(asked: list[Ask], left: set[int], results: list[Any], log: list[tuple[int, list[int]]]) -> None:
    computed = [number for _, batch in log for number in batch]
    assert len(set(computed)) == len(computed), "nothing is computed twice"
    for engine, batch in log:
        assert 1 <= len(batch) <= MAX_BATCH
        assert {asked[number].engine for number in batch} == {engine}, "a batch has one engine"
        assert batch == sorted(batch), "in order within a batch"
    for engine in range(3):
        of_engine = [number for number in computed if asked[number].engine == engine]
        assert of_engine == sorted(of_engine), "first come, first served, engine by engine"
    for number, (ask, result) in enumerate(zip(asked, results, strict=True)):
        if isinstance(result, Batched):
            assert not ask.expired
            assert not ask.fails
            assert result.answer == (ask.engine, number), "somebody else's answer"
            assert number in computed
        elif isinstance(result, EngineFailedError):
            assert ask.fails
            assert str(number) == str(result)
        elif isinstance(result, DeadlineExceededError):
            assert ask.expired
        elif isinstance(result, asyncio.CancelledError):
            assert number in left
        else:
            assert isinstance(result, QueueFullError)
        if ask.expired or isinstance(result, QueueFullError):
            assert number not in computed
