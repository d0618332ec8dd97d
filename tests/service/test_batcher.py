"""The batcher's own logic, with engines that are plain functions: what is under test is who gets what."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from service.batcher import MAX_IDLE_QUEUE, Batcher
from service.deadline import Deadline
from service.errors import DeadlineExceededError, EngineFailedError, QueueFullError, ShuttingDownError

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)


class Echo:
    """Answers each request with (its own name, the request) and notes every batch."""

    def __init__(self, name: str = "echo") -> None:
        self.name = name
        self.batches: list[list[Any]] = []
        self.threads: set[int] = set()

    def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
        self.threads.add(threading.get_ident())
        self.batches.append(list(requests))
        return [(self.name, request) for request in requests]


class Gate(Echo):
    """Holds its first batch until it is opened, so that a test decides what queues up behind it."""

    def __init__(self, name: str = "gate") -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.opened = threading.Event()

    def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
        self.entered.set()
        assert self.opened.wait(20)
        return super().recall(requests)


@pytest.fixture
async def batcher(anyio_backend: object) -> AsyncIterator[Batcher[Any, Any]]:
    batcher: Batcher[Any, Any] = Batcher(max_batch=4, max_queue=6)
    yield batcher
    await batcher.close()


async def occupied(batcher: Batcher[Any, Any]) -> tuple[Gate, asyncio.Task[Any]]:
    """A batch that is on the device and stays there until its gate opens."""
    gate = Gate()
    task = asyncio.create_task(batcher.submit(gate, "first", IN_TIME))
    assert await asyncio.to_thread(gate.entered.wait, 10)
    return gate, task


async def queued(batcher: Batcher[Any, Any], count: int) -> None:
    while batcher.depth != count:
        await asyncio.sleep(0.001)


async def test_an_idle_device_runs_a_single_request_at_once(batcher: Batcher[Any, Any]) -> None:
    engine = Echo()
    batched = await batcher.submit(engine, "a", IN_TIME)
    assert batched.answer == ("echo", "a")
    assert batched.queue_seconds >= 0
    assert engine.batches == [["a"]]


async def test_what_queues_up_behind_a_busy_device_becomes_the_next_batches(
    batcher: Batcher[Any, Any],
) -> None:
    gate, first = await occupied(batcher)
    later = [asyncio.create_task(batcher.submit(gate, n, IN_TIME)) for n in range(6)]
    await queued(batcher, 6)
    gate.opened.set()
    assert [(await task).answer[1] for task in [first, *later]] == ["first", *range(6)]
    assert gate.batches == [["first"], [0, 1, 2, 3], [4, 5]]


async def test_a_large_batch_is_handed_over_in_turns_so_that_others_are_heard(anyio_backend: object) -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=100, max_queue=100)
    gate, first = await occupied(batcher)
    tasks = [asyncio.create_task(batcher.submit(gate, n, IN_TIME)) for n in range(100)]
    await queued(batcher, 100)
    gate.opened.set()
    done_by_turn = [0]
    while done_by_turn[-1] < 100:
        await asyncio.sleep(0)
        done_by_turn.append(sum(task.done() for task in tasks))
    steps = [later - earlier for earlier, later in itertools.pairwise(done_by_turn)]
    assert max(steps) <= 20
    assert [(await task).answer[1] for task in tasks] == list(range(100))
    await first
    await batcher.close()


async def test_a_full_queue_refuses_and_says_when_to_return(batcher: Batcher[Any, Any]) -> None:
    gate, first = await occupied(batcher)
    waiting = [asyncio.create_task(batcher.submit(gate, n, IN_TIME)) for n in range(6)]
    await queued(batcher, 6)
    with pytest.raises(QueueFullError) as refused:
        await batcher.submit(gate, "too many", IN_TIME)
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) >= 1
    gate.opened.set()
    await asyncio.gather(first, *waiting)
    assert "too many" not in [request for batch in gate.batches for request in batch]


async def test_an_expired_request_takes_no_place_in_a_batch(batcher: Batcher[Any, Any]) -> None:
    gate, first = await occupied(batcher)
    late = asyncio.create_task(batcher.submit(gate, "late", Deadline(time.monotonic() + 0.02)))
    in_time = asyncio.create_task(batcher.submit(gate, "in time", IN_TIME))
    with pytest.raises(DeadlineExceededError):
        await late
    await queued(batcher, 1)  # the late one has freed its place
    gate.opened.set()
    await asyncio.gather(first, in_time)
    assert gate.batches == [["first"], ["in time"]]


async def test_a_request_that_expires_while_the_loop_is_held_up_is_not_computed(
    batcher: Batcher[Any, Any],
) -> None:
    gate, first = await occupied(batcher)
    late = asyncio.create_task(batcher.submit(gate, "late", Deadline(time.monotonic() + 0.05)))
    await queued(batcher, 1)
    time.sleep(0.1)  # the loop cannot fire its timer: only the device thread sees the deadline pass
    gate.opened.set()
    while len(gate.batches) < 1 or batcher.depth:
        time.sleep(0.001)
    with pytest.raises(DeadlineExceededError):
        await late
    await first
    assert gate.batches == [["first"]]


async def test_a_request_that_cannot_be_in_time_is_turned_away_and_one_slow_batch_is_forgotten(
    batcher: Batcher[Any, Any],
) -> None:
    class Slow(Echo):
        def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
            time.sleep(2.0)
            return super().recall(requests)

    await batcher.submit(Slow(), "slow", IN_TIME)
    echo = Echo()
    turned_away = 0
    while not echo.batches:
        assert turned_away < 20, "a slow batch long ago still turns everybody away"
        try:
            await batcher.submit(echo, "hasty", Deadline(time.monotonic() + 0.1))
        except DeadlineExceededError:
            turned_away += 1
    assert turned_away >= 1
    assert echo.batches == [["hasty"]]


async def test_a_cancelled_request_frees_its_place(batcher: Batcher[Any, Any]) -> None:
    gate, first = await occupied(batcher)
    waiting = [asyncio.create_task(batcher.submit(gate, n, IN_TIME)) for n in range(6)]
    await queued(batcher, 6)
    waiting[2].cancel()
    await queued(batcher, 5)
    replacement = asyncio.create_task(batcher.submit(gate, "replacement", IN_TIME))
    await queued(batcher, 6)
    gate.opened.set()
    results = await asyncio.gather(first, *waiting, replacement, return_exceptions=True)
    assert isinstance(results[3], asyncio.CancelledError)
    assert gate.batches == [["first"], [0, 1, 3, 4], [5, "replacement"]]


async def test_a_failed_batch_fails_every_member_and_the_next_one_runs(batcher: Batcher[Any, Any]) -> None:
    class Broken(Echo):
        def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
            raise RuntimeError("out of memory")

    gate, first = await occupied(batcher)
    broken = Broken()
    members = [asyncio.create_task(batcher.submit(broken, n, IN_TIME)) for n in range(3)]
    await queued(batcher, 3)
    gate.opened.set()
    results = await asyncio.gather(*members, return_exceptions=True)
    assert all(isinstance(result, EngineFailedError) for result in results)
    await first
    assert (await batcher.submit(Echo(), "after", IN_TIME)).answer == ("echo", "after")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
async def test_nothing_that_an_engine_raises_ends_the_thread(
    batcher: Batcher[Any, Any], error: BaseException
) -> None:
    class Deadly(Echo):
        def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
            raise error

    with pytest.raises(EngineFailedError):
        await batcher.submit(Deadly(), "a", IN_TIME)
    assert (await batcher.submit(Echo(), "b", IN_TIME)).answer == ("echo", "b")


async def test_too_few_answers_fail_the_batch_instead_of_shifting_it(batcher: Batcher[Any, Any]) -> None:
    class Short(Gate):
        def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
            return super().recall(requests)[:-1]

    gate, first = await occupied(batcher)
    short = Short()
    short.opened.set()
    members = [asyncio.create_task(batcher.submit(short, n, IN_TIME)) for n in range(3)]
    await queued(batcher, 3)
    gate.opened.set()
    results = await asyncio.gather(first, *members, return_exceptions=True)
    assert all(isinstance(result, EngineFailedError) for result in results[1:])


async def test_a_batch_never_mixes_engines(batcher: Batcher[Any, Any]) -> None:
    gate, first = await occupied(batcher)
    old, new = Echo("old"), Echo("new")
    order = [old, old, new, new, old]
    tasks = [asyncio.create_task(batcher.submit(e, n, IN_TIME)) for n, e in enumerate(order)]
    await queued(batcher, 5)
    gate.opened.set()
    answers = [(await task).answer for task in tasks]
    assert answers == [(engine.name, n) for n, engine in enumerate(order)]
    assert (old.batches, new.batches) == ([[0, 1, 4]], [[2, 3]])
    await first


async def test_engines_that_alternate_in_the_queue_still_make_full_batches(anyio_backend: object) -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=8, max_queue=100)
    gate, first = await occupied(batcher)
    arms = [Echo("a"), Echo("b"), Echo("c")]
    order = [arms[n % 3] for n in range(48)]
    tasks = [asyncio.create_task(batcher.submit(e, n, IN_TIME)) for n, e in enumerate(order)]
    await queued(batcher, 48)
    gate.opened.set()
    await asyncio.gather(first, *tasks)
    for number, arm in enumerate(arms):
        assert arm.batches == [list(range(number, 24, 3)), list(range(24 + number, 48, 3))]
    await batcher.close()


async def test_the_oldest_request_goes_next_however_many_of_another_engine_wait(
    anyio_backend: object,
) -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=4, max_queue=100)
    gate, first = await occupied(batcher)
    log: list[tuple[str, list[Any]]] = []

    class Noting(Echo):
        def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
            log.append((self.name, list(requests)))
            return super().recall(requests)

    many, rare = Noting("many"), Noting("rare")
    order = [many, rare, *[many] * 20, rare, *[many] * 5]
    tasks = [asyncio.create_task(batcher.submit(e, n, IN_TIME)) for n, e in enumerate(order)]
    await queued(batcher, len(order))
    gate.opened.set()
    await asyncio.gather(first, *tasks)
    assert log[:2] == [("many", [0, 2, 3, 4]), ("rare", [1, 22])], "the rare one goes second, its fellow too"
    assert [request for name, batch in log if name == "many" for request in batch] == [
        n for n, engine in enumerate(order) if engine is many
    ]
    await batcher.close()


async def test_what_nobody_waits_for_runs_alone_and_only_while_no_request_waits(
    batcher: Batcher[Any, Any],
) -> None:
    gate, first = await occupied(batcher)
    log: list[tuple[str, list[Any]]] = []

    class Noting(Echo):
        def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
            log.append((self.name, list(requests)))
            return super().recall(requests)

    idle, busy = Noting("idle"), Noting("busy")
    background = [asyncio.create_task(batcher.submit_when_idle(idle, n, IN_TIME)) for n in range(3)]
    await asyncio.sleep(0)
    waited_for = [asyncio.create_task(batcher.submit(busy, n, IN_TIME)) for n in range(6)]
    await queued(batcher, 6)
    gate.opened.set()
    await asyncio.gather(first, *waited_for, *background)
    assert log == [
        ("busy", [0, 1, 2, 3]),
        ("busy", [4, 5]),
        ("idle", [0]),
        ("idle", [1]),
        ("idle", [2]),
    ]


async def test_what_nobody_waits_for_takes_a_quarter_of_the_device_at_most(
    batcher: Batcher[Any, Any],
) -> None:
    """Between two such computations the device rests three times as long as the first one took."""
    times: list[tuple[float, float]] = []

    class Slow(Echo):
        def recall(self, requests: Sequence[Any]) -> Sequence[Any]:
            began = time.monotonic()
            time.sleep(0.03)
            times.append((began, time.monotonic()))
            return super().recall(requests)

    slow = Slow()
    await asyncio.gather(*(batcher.submit_when_idle(slow, n, IN_TIME) for n in range(5)))
    for (began, ended), (next_began, _) in itertools.pairwise(times):
        assert next_began - ended >= 2.99 * (ended - began)


async def test_what_nobody_waits_for_is_bounded_in_number_and_in_time_and_then_holds_no_engine(
    batcher: Batcher[Any, Any],
) -> None:
    gate, first = await occupied(batcher)
    engine = Echo()
    soon = Deadline(time.monotonic() + 0.3)
    tasks = [
        asyncio.create_task(batcher.submit_when_idle(engine, n, soon)) for n in range(MAX_IDLE_QUEUE + 5)
    ]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results].count(QueueFullError) == 5
    assert [type(result) for result in results].count(DeadlineExceededError) == MAX_IDLE_QUEUE
    gone = weakref.ref(engine)
    del engine, tasks, results
    give_up = time.monotonic() + 2
    while gone() is not None:
        assert time.monotonic() < give_up, "given up, and still holding a bundle"
        await asyncio.sleep(0.01)
        gc.collect()
    gate.opened.set()
    await first


async def test_closing_does_not_wait_for_what_nobody_waits_for() -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=2, max_queue=10)
    gate, first = await occupied(batcher)
    idle = Echo("idle")
    background = asyncio.create_task(batcher.submit_when_idle(idle, "a", IN_TIME))
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(batcher.close(timeout_s=20))
    await asyncio.sleep(0.01)
    gate.opened.set()
    await asyncio.gather(first, closing)
    with pytest.raises(ShuttingDownError):
        await background
    assert idle.batches == []


async def test_everything_runs_on_one_thread_that_is_not_the_event_loop(batcher: Batcher[Any, Any]) -> None:
    engine = Echo()
    await asyncio.gather(*(batcher.submit(engine, n, IN_TIME) for n in range(6)))
    engine.threads.add(await batcher.call(threading.get_ident))
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


async def test_an_idle_batcher_keeps_no_engine_alive(batcher: Batcher[Any, Any]) -> None:
    engine = Echo()
    await batcher.submit(engine, "a", IN_TIME)
    gone = weakref.ref(engine)
    del engine
    give_up = time.monotonic() + 2
    while gone() is not None:
        assert time.monotonic() < give_up, "the idle device thread still holds the engine"
        await asyncio.sleep(0.01)
        gc.collect()


async def test_a_call_on_the_device_thread_passes_its_exception_on(batcher: Batcher[Any, Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        await batcher.call(lambda: 1 // 0)


async def test_a_batch_that_does_not_end_shows(batcher: Batcher[Any, Any]) -> None:
    assert batcher.busy_seconds == 0
    gate, first = await occupied(batcher)
    await asyncio.sleep(0.05)
    assert batcher.busy_seconds >= 0.02
    gate.opened.set()
    await first
    await batcher.call(lambda: None)
    while batcher.busy_seconds:
        await asyncio.sleep(0.001)


async def test_closing_answers_what_is_queued_and_refuses_what_comes_later() -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=2, max_queue=10)
    gate, first = await occupied(batcher)
    waiting = [asyncio.create_task(batcher.submit(gate, n, IN_TIME)) for n in range(5)]
    await queued(batcher, 5)
    closing = asyncio.create_task(batcher.close(timeout_s=20))
    await asyncio.sleep(0.01)
    with pytest.raises(ShuttingDownError):
        await batcher.submit(gate, "late", IN_TIME)
    gate.opened.set()
    await closing
    assert [(await task).answer[1] for task in [first, *waiting]] == ["first", 0, 1, 2, 3, 4]
    assert not batcher.alive


async def test_closing_a_wedged_device_fails_the_waiters_instead_of_hanging() -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=2, max_queue=10)
    gate, first = await occupied(batcher)
    waiting = asyncio.create_task(batcher.submit(gate, "a", IN_TIME))
    await queued(batcher, 1)
    await batcher.close(timeout_s=0.05)
    with pytest.raises(ShuttingDownError):
        await waiting
    gate.opened.set()
    await first


async def test_under_random_cancellation_everybody_gets_only_what_is_theirs() -> None:
    batcher: Batcher[Any, Any] = Batcher(max_batch=8, max_queue=10_000)
    choice = random.Random(0)
    engines = [Echo("a"), Echo("b")]
    wrong = []

    async def ask(number: int) -> None:
        engine = choice.choice(engines)
        answer = (await batcher.submit(engine, number, IN_TIME)).answer
        if answer != (engine.name, number):
            wrong.append((number, answer))

    tasks = [asyncio.create_task(ask(number)) for number in range(2000)]
    for task in choice.sample(tasks, 800):
        asyncio.get_running_loop().call_later(choice.random() * 0.05, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert wrong == []
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert batcher.depth == 0
    await batcher.close()
