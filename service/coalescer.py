"""Merges reads that wait at the same moment into one call, without a timer.

A read that finds a free lane leaves at once; while every lane is busy, what queues up is the next
call. The call belongs to its lane: a caller that is cancelled or times out stops waiting, and the
call goes on, so that a reply can never be left on a connection for somebody else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Coalescer(Generic[Key, Value]):
    """fetch: keys -> as many values in their order; a value that is an exception fails its caller alone."""

    def __init__(
        self,
        fetch: Callable[[list[Key]], Awaitable[list[Value | Exception]]],
        *,
        max_batch: int,
        lanes: int,
    ) -> None:
        self._fetch = fetch
        self._max_batch = max_batch
        self._free_lanes = lanes
        self._waiting: deque[tuple[Key, asyncio.Future[Value]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def get(self, key: Key, *, give_up_at: float) -> Value:
        """The value of `key`, or the exception that its call ended with; TimeoutError at `give_up_at`.

        give_up_at: on the clock of `time.monotonic`; the loop's own stands still during a turn
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Value] = loop.create_future()
        self._waiting.append((key, future))
        self._start_lanes()
        timer = loop.call_later(give_up_at - time.monotonic(), _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Wait for the calls on their way; they are bounded by their own timeouts."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    def _start_lanes(self) -> None:
        while self._free_lanes and self._waiting:
            self._free_lanes -= 1
            task = asyncio.get_running_loop().create_task(self._run_lane())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run_lane(self) -> None:
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._free_lanes += 1

    def _next_batch(self) -> list[tuple[Key, asyncio.Future[Value]]]:
        batch: list[tuple[Key, asyncio.Future[Value]]] = []
        while self._waiting and len(batch) < self._max_batch:
            key, future = self._waiting.popleft()
            if not future.done():  # its caller gave up while it waited
                batch.append((key, future))
        return batch

    async def _answer(self, batch: list[tuple[Key, asyncio.Future[Value]]]) -> None:
        try:
            values: list[Value | Exception] = await self._fetch([key for key, _ in batch])
            if len(values) != len(batch):
                raise RuntimeError(f"asked for {len(batch)} values, got {len(values)}")
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    failure = error if isinstance(error, Exception) else RuntimeError("the read was cut off")
                    future.set_exception(failure)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), value in zip(batch, values, strict=True):
            if future.done():
                continue
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)


def _give_up(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
