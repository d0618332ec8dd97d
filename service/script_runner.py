"""One script for several users' keys, and who runs it: one server here, or a cluster (`redis_cluster.py`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypeVar

from service.redis_guard import Connection, RedisGuard, call_script, ping

Result = TypeVar("Result")
Understand = Callable[[Any, Sequence[int]], list[Result | Exception]]
"""(reply, which keys of the call it is for) -> what it says of each; an exception is about that key alone.

Raises NotThisUserError for a reply that says nothing.
"""


class ScriptCall(NamedTuple):
    """A script that takes any number of keys.   shared, own: its arguments, `own` those of each key"""

    script: str
    sha: str
    keys: Sequence[str]
    shared: Sequence[str]
    own: Sequence[Sequence[str]]

    def arguments(self, which: Sequence[int]) -> list[str]:
        """KEYS and ARGV of the call for these keys."""
        own = chain.from_iterable(self.own[number] for number in which) if self.own else ()
        return [*(self.keys[number] for number in which), *self.shared, *own]


class ScriptRunner(Protocol):
    """Calls of one kind, reads or writes. Every failure is a StoreUnavailableError."""

    @property
    def state(self) -> str:
        """Of the breaker: `closed`, `opened` or `half-opened`."""

    def place_of(self, key: str) -> Hashable:
        """Keys of one place can be asked for together."""

    async def run(self, script: ScriptCall, understand: Understand[Result]) -> list[Result | Exception]:
        """As many results as keys, in their order."""

    async def ping(self, num_connections: int) -> None:
        """A round trip on so many connections at once, which opens them."""

    async def close(self) -> None: ...


class OneServer:
    """Everything lies in one place, and one call of a script takes all keys."""

    def __init__(self, guard: RedisGuard) -> None:
        self._guard = guard

    @property
    def state(self) -> str:
        return self._guard.state

    def place_of(self, key: str) -> Hashable:
        """Keys of one place can be asked for together."""
        return None

    async def run(self, script: ScriptCall, understand: Understand[Result]) -> list[Result | Exception]:
        """As many results as keys, in their order. Raises StoreUnavailableError."""
        which = range(len(script.keys))

        async def run(connection: Connection) -> list[Result | Exception]:
            arguments = script.arguments(which)
            reply = await call_script(connection, script.script, script.sha, len(which), arguments)
            return await without_doubt(connection, understand(reply, which))

        return await self._guard.call(run)

    async def ping(self, num_connections: int) -> None:
        """A round trip on so many connections at once. Raises StoreUnavailableError."""
        await asyncio.gather(*(self._guard.call(ping) for _ in range(num_connections)))

    async def close(self) -> None:
        """Close every connection."""
        await self._guard.close()


async def without_doubt(
    connection: Connection, understood: list[Result | Exception]
) -> list[Result | Exception]:
    """The same; a connection that gave something that cannot be right is dropped."""
    if any(isinstance(each, Exception) for each in understood):
        await connection.disconnect(nowait=True)
    return understood
