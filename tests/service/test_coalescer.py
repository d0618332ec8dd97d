"""Reads that wait together travel together, and each caller gets its own value."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from service.coalescer import Coalescer

pytestmark = pytest.mark.anyio
IN_TIME = time.monotonic() + 3600


async def read(coalescer: Coalescer[int, int], key: int) -> int:
    return await coalescer.get(key, give_up_at=IN_TIME)


class Source:
    """Answers key k with -k, one call at a time when told to wait."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.running = 0
        self.most_running = 0

    async def fetch(self, keys: list[int]) -> list[int | Exception]:
        self.calls.append(keys)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        return [KeyError(key) if key < 0 else -key for key in keys]


async def test_reads_that_wait_together_travel_together() -> None:
    source = Source()
    coalescer: Coalescer[int, int] = Coalescer(source.fetch, max_batch=10, lanes=1)
    first = asyncio.create_task(read(coalescer, 1))
    await asyncio.sleep(0.001)
    rest = await asyncio.gather(*(read(coalescer, key) for key in range(2, 15)))
    assert await first == -1
    assert rest == [-key for key in range(2, 15)]
    assert source.calls == [[1], list(range(2, 12)), [12, 13, 14]]


async def test_no_more_calls_than_lanes_are_on_their_way() -> None:
    source = Source()
    coalescer: Coalescer[int, int] = Coalescer(source.fetch, max_batch=1, lanes=3)
    await asyncio.gather(*(read(coalescer, key) for key in range(20)))
    assert source.most_running == 3


async def test_a_failing_value_fails_its_caller_alone() -> None:
    coalescer: Coalescer[int, int] = Coalescer(Source().fetch, max_batch=10, lanes=1)
    results = await asyncio.gather(*(read(coalescer, key) for key in (1, -2, 3)), return_exceptions=True)
    assert (results[0], results[2]) == (-1, -3)
    assert isinstance(results[1], KeyError)


async def test_a_failing_call_fails_its_callers_and_the_next_call_runs() -> None:
    source = Source()

    async def fetch(keys: list[int]) -> list[int | Exception]:
        if 0 in keys:
            raise ConnectionError
        return await source.fetch(keys)

    coalescer: Coalescer[int, int] = Coalescer(fetch, max_batch=2, lanes=1)
    results = await asyncio.gather(*(read(coalescer, key) for key in (0, 1, 2)), return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError, ConnectionError, int]


async def test_an_answer_of_the_wrong_length_is_nobodys() -> None:
    async def fetch(keys: list[int]) -> list[int | Exception]:
        return [1]

    coalescer: Coalescer[int, int] = Coalescer(fetch, max_batch=5, lanes=1)
    results = await asyncio.gather(*(read(coalescer, key) for key in (1, 2)), return_exceptions=True)
    assert all(isinstance(result, RuntimeError) for result in results)


async def test_cancelled_callers_disturb_nobody() -> None:
    choice = random.Random(0)
    source = Source()
    coalescer: Coalescer[int, int] = Coalescer(source.fetch, max_batch=7, lanes=2)
    tasks = {key: asyncio.create_task(read(coalescer, key)) for key in range(1, 500)}
    for key in choice.sample(sorted(tasks), 200):
        asyncio.get_running_loop().call_later(choice.random() * 0.05, tasks[key].cancel)
    results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    for key, result in zip(tasks, results, strict=True):
        assert result == -key or isinstance(result, asyncio.CancelledError)
    assert await coalescer.get(7, give_up_at=IN_TIME) == -7


async def test_a_caller_gives_up_alone_and_in_time() -> None:
    stuck = asyncio.Event()

    async def fetch(keys: list[int]) -> list[int | Exception]:
        await stuck.wait()
        return [-key for key in keys]

    coalescer: Coalescer[int, int] = Coalescer(fetch, max_batch=10, lanes=1)
    patient = asyncio.create_task(coalescer.get(1, give_up_at=IN_TIME))
    for key in (2, 3):
        with pytest.raises(TimeoutError):
            await coalescer.get(key, give_up_at=time.monotonic() + 0.01)
    stuck.set()
    assert await patient == -1
