"""A time limit on a reply that holds a late server responsible, not a late event loop.

A busy loop runs the timers that are due before it looks at its sockets: with a plain timeout a reply that
came in a millisecond is given up when the loop was away for thirty. So a timer that the loop was late for is
given as long again, once and not longer than the limit itself: what lies in the socket is read meanwhile. And
a turn of the loop begins with its timers, before the tasks whose replies the last turn read: they go first.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

LATE_S = 0.001


class ReplyTimeout:
    """`async with ReplyTimeout(seconds): …` raises TimeoutError like asyncio.timeout."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = asyncio.timeout(None)
        await self._limit.__aenter__()
        self._at = time.monotonic() + self._seconds
        self._next: asyncio.Handle = self._loop.call_later(self._seconds, self._due)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._next.cancel()
        await self._limit.__aexit__(kind, error, traceback)

    def _due(self) -> None:
        late_s = time.monotonic() - self._at
        if late_s < LATE_S:
            self._give_up()
        else:
            self._next = self._loop.call_later(min(late_s, self._seconds), self._after_the_woken)

    def _after_the_woken(self) -> None:
        self._next = self._loop.call_soon(self._give_up)

    def _give_up(self) -> None:
        self._limit.reschedule(self._loop.time())
