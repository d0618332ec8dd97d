"""A deadline is one moment: store, queue, tower and search get what is left; late work is not done."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from model.batch import PaddedSequences
from model.engines.interface import EagerTower
from service.deadline import Deadline
from service.engine import Engine
from service.schemas import RecallRequest

pytestmark = pytest.mark.anyio
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]


class Noting(EagerTower):
    """A tower that begins only when it may, and notes for how many it was asked."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.bundle.model)
        self.batches: list[int] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def embed(self, padded: PaddedSequences, keys: Sequence[int]) -> np.ndarray:
        self.batches.append(len(keys))
        assert self.may_run.wait(20)
        return super().embed(padded, keys)


class Counting:
    """An index that counts its searches."""

    def __init__(self, index: Any) -> None:
        self._index, self.searches = index, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def within(self, timeout_s: float, until: float) -> Counting:
        return self

    def search(self, *arguments: Any) -> Any:
        self.searches += 1
        return self._index.search(*arguments)


async def served(start: Any, engine: Engine, **settings: Any) -> tuple[Any, Noting, Counting]:
    running = await start(**settings)
    tower, index = Noting(engine), Counting(engine.bundle.index)
    bundle = dataclasses.replace(engine.bundle, index=index)  # type: ignore[arg-type]
    running.service.swap(Engine(bundle, device="cpu", tower=tower))
    return running, tower, index


async def held_up(running: Any) -> tuple[threading.Event, asyncio.Task[Any]]:
    """The device does nothing else until the event is set."""
    entered, released = threading.Event(), threading.Event()

    def hold() -> bool:
        entered.set()
        return released.wait(20)

    task = asyncio.create_task(running.service._batcher.call(hold))
    while not entered.is_set():
        await asyncio.sleep(0.001)
    return released, task


async def ask(running: Any, *, deadline_ms: int, **fields: Any) -> tuple[int, str | None]:
    """-> status, reason"""
    headers = {"X-Deadline-Ms": str(deadline_ms)}
    response = await running.client.post("/recall", json={"user_id": "u", **fields}, headers=headers)
    return response.status_code, response.json().get("reason")


EITHER = pytest.mark.parametrize(
    ("on_deadline", "expected"), [("fallback", (200, "deadline")), ("error", (504, None))]
)


@EITHER
async def test_the_store_gets_what_is_left_though_its_own_timeout_is_longer(
    start: Any, engine: Engine, on_deadline: str, expected: tuple[int, str | None]
) -> None:
    running, tower, _ = await served(start, engine, redis_read_timeout_ms=10_000, on_deadline=on_deadline)
    coalescer = running.service.store._coalescer_of("u")
    fetch, released = coalescer._fetch, asyncio.Event()

    async def held(keys: list[str]) -> Any:
        await released.wait()
        return await fetch(keys)

    coalescer._fetch = held
    try:
        assert await ask(running, deadline_ms=50) == expected, "answered while the store still holds"
    finally:
        released.set()
    assert tower.batches == []


class FiredEarly(Deadline):
    """The event loop's timers count whole milliseconds and may fire before the clock is there."""

    expired = False  # type: ignore[assignment]


async def test_a_timer_that_fires_early_is_no_fault_of_redis(start: Any, engine: Engine) -> None:
    running, _, _ = await served(start, engine, redis_read_timeout_ms=10_000)
    coalescer = running.service.store._coalescer_of("u")
    fetch, released = coalescer._fetch, asyncio.Event()

    async def held(keys: list[str]) -> Any:
        await released.wait()
        return await fetch(keys)

    coalescer._fetch = held
    try:
        recalled = await running.service.recall(
            RecallRequest(user_id="u"), FiredEarly(time.monotonic() + 0.05)
        )
    finally:
        released.set()
    assert recalled.reason == "deadline"


@EITHER
async def test_what_expires_in_the_queue_is_never_computed(
    start: Any, engine: Engine, on_deadline: str, expected: tuple[int, str | None]
) -> None:
    running, tower, _ = await served(start, engine, on_deadline=on_deadline)
    released, blocker = await held_up(running)
    assert await ask(running, deadline_ms=60, sequence=SEQUENCE) == expected, "answered in the queue"
    released.set()
    assert await blocker
    await running.service._batcher.call(lambda: None)
    assert tower.batches == []


@EITHER
async def test_a_tower_that_is_too_slow_is_not_waited_for_and_nobody_is_searched_for(
    start: Any, engine: Engine, on_deadline: str, expected: tuple[int, str | None]
) -> None:
    running, tower, index = await served(start, engine, on_deadline=on_deadline)
    tower.may_run.clear()
    assert await ask(running, deadline_ms=400, sequence=SEQUENCE) == expected, "answered while it runs"
    tower.may_run.set()
    await running.service._batcher.call(lambda: None)
    assert (tower.batches, index.searches) == ([1], 0)


async def test_one_member_that_still_waits_is_searched_for(start: Any, engine: Engine) -> None:
    running, tower, index = await served(start, engine)
    released, blocker = await held_up(running)
    tower.may_run.clear()
    hasty = asyncio.create_task(ask(running, deadline_ms=800, sequence=SEQUENCE))
    patient = asyncio.create_task(ask(running, deadline_ms=20_000, sequence=SEQUENCE))
    while running.service._batcher.depth < 2:
        assert not hasty.done(), "the machine was too slow for this test: nobody queued in 800 ms"
        await asyncio.sleep(0.001)
    released.set()
    assert await hasty == (200, "deadline")
    tower.may_run.set()
    assert await patient == (200, None)
    assert (tower.batches, index.searches) == ([2], 1)
    await blocker


@pytest.mark.parametrize("given", [True, False])
async def test_what_has_expired_on_arrival_asks_neither_store_nor_device(
    start: Any, engine: Engine, given: bool
) -> None:
    running, tower, _ = await served(start, engine)
    reads = 0
    read = running.service.store.read

    async def counted(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*arguments)

    running.service.store.read = counted
    fields: dict[str, Any] = {"sequence": SEQUENCE} if given else {}
    asked = RecallRequest(user_id="u", **fields)
    recalled = await running.service.recall(asked, Deadline(time.monotonic() - 0.001))
    assert (recalled.route, recalled.reason, recalled.degraded) == ("popular", "deadline", True)
    assert (reads, tower.batches) == (0, [])
