"""A time limit on a reply that holds a late server responsible, not a late event loop.

A busy loop runs the timers that are due before it looks at its sockets: with a plain timeout a reply that
came in a millisecond is given up when the loop was away for thirty. So a due timer lets the loop look once
more before anything is cancelled, and where the loop itself was late, it waits as long again, once.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

LATE_S = 0.001
_LOOKS = 3
"""Turns of the loop: the socket is read in the first, the waiting task runs in the second."""


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
            self._look(_LOOKS)
        else:
            self._next = self._loop.call_later(min(late_s, self._seconds), self._look, _LOOKS)

    def _look(self, turns: int) -> None:
        if turns:
            self._next = self._loop.call_soon(self._look, turns - 1)
        else:
            self._limit.reschedule(self._loop.time())
