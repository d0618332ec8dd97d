"""One kind of call to Redis: its pool, its breaker, its timeout; and the only file that knows redis-py.

Built around what went wrong with this client before (all measured or on record):
- no retries, an outer timeout in milliseconds: the client's defaults retried a stopped server for 59 s;
- every call echoes a nonce before its answer, so a crossed reply is caught; the connection is then
  dropped and the call counts as failed;
- bounded pools that wait no longer than the call may take;
- a circuit breaker: a dead Redis costs microseconds, not timeouts, and one trial at a time finds out
  that it is back.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from hiredis import pack_command
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection as Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from service.errors import StoreUnavailableError
from service.packed_sequence import NotThisUserError

Result = TypeVar("Result")


class RedisGuard:
    """One kind of call: its pool, its breaker, its timeout, and one name for every way to fail."""

    def __init__(
        self,
        operation: str,
        url: str,
        *,
        max_connections: int,
        timeout_ms: float,
        breaker_threshold: int,
        breaker_cooldown_ms: float,
        on_state: Callable[[str, str], None] | None,
    ) -> None:
        """on_state: called with (operation, breaker state) whenever the breaker changes."""
        self._operation = operation
        self._pool = _pool(url, max_connections, timeout_ms)
        self._timeout_s = timeout_ms / 1000
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=breaker_threshold,
            default_ttl=breaker_cooldown_ms / 1000,
            exclude=[ResponseError],  # an answer, though an unwelcome one: the server is there
        )
        if on_state is not None:
            self._breakers.add_listener(
                lambda name, kind, event: on_state(name, self.state) if kind == "state_changed" else None
            )
        self._breaker: Any = None
        self._on_trial = False
        self._kept: list[Connection] = []
        self._num_waiting = 0  # calls that wait for the pool

    @property
    def state(self) -> str:
        return self._breaker.context.state if self._breaker else "closed"

    async def call(self, command: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Run `command` on a connection of its own."""
        if self._breaker is None:
            self._breaker = await self._breakers.get_breaker(self._operation)
        if self._on_trial:
            raise StoreUnavailableError("breaker_open", "Redis is being tried again after failures")
        try:
            async with self._breaker:
                self._on_trial = self._breaker.context.state == "half-opened"
                try:
                    async with asyncio.timeout(self._timeout_s):
                        return await self._on_connection(command)
                finally:
                    self._on_trial = False
        except OpenedState as error:
            error.__traceback__ = (
                None  # the breaker raises one object again and again: it must not collect frames
            )
            raise StoreUnavailableError(
                "breaker_open", "Redis is left alone for a moment after failures"
            ) from None
        except TimeoutError:
            raise StoreUnavailableError("timeout", "Redis did not answer in time") from None
        except NotThisUserError as error:
            raise StoreUnavailableError("crossed", str(error)) from None
        except ResponseError as error:
            raise StoreUnavailableError(
                "refused", f"Redis refused the command: {_first_word(error)}"
            ) from None
        except (RedisError, OSError) as error:
            raise StoreUnavailableError(
                "connection", f"Redis cannot be reached: {type(error).__name__}"
            ) from None

    async def _on_connection(self, command: Callable[[Connection], Awaitable[Result]]) -> Result:
        connection = await self._take()
        clean = False
        try:
            result = await command(connection)
            clean = True
            return result
        except ResponseError:
            clean = True  # a complete reply was read
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            if clean and connection.is_connected and not self._num_waiting:
                self._kept.append(connection)
            else:
                await self._pool.release(connection)

    async def _take(self) -> Connection:
        """A connection in working order. One that a call has just left is taken past the pool, whose
        locks and events cost more than the call itself."""
        if self._kept:
            connection = self._kept.pop()
            with suppress(RedisError, OSError):
                if connection.is_connected and not await connection.can_read():
                    return connection
            await self._pool.release(connection)  # closed by the server, or with a reply nobody asked for
        self._num_waiting += 1
        try:
            return await self._pool.get_connection()
        finally:
            self._num_waiting -= 1

    async def close(self) -> None:
        await self._pool.aclose()


_nonces = itertools.count(int.from_bytes(os.urandom(4), "little"))


async def call(connection: Connection, *command: Any) -> Any:
    """Send ECHO nonce and the command together; an answer without its echo is somebody else's."""
    nonce = b"%x" % next(_nonces)
    commands: list[Any] = [("ECHO", nonce), command]
    packed = [pack_command(each) for each in commands]  # in C; redis-py's own is not
    await connection.send_packed_command(packed)
    try:
        echoed = await connection.read_response()
    except ResponseError:
        await connection.disconnect(nowait=True)  # the second reply is still on its way
        raise
    if echoed != nonce:
        raise NotThisUserError("Redis answered another question")
    return await connection.read_response()


async def ping(connection: Connection) -> None:
    """One round trip."""
    await call(connection, "PING")


async def call_script(
    connection: Connection, script: str, sha: str, num_keys: int, arguments: list[str]
) -> None:
    """Run a script by its SHA-1, and send the script itself only where the server does not have it."""
    try:
        await call(connection, "EVALSHA", sha, num_keys, *arguments)
    except NoScriptError:  # a restarted Redis has forgotten it
        await call(connection, "EVAL", script, num_keys, *arguments)


def _pool(url: str, max_connections: int, timeout_ms: float) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_ms / 1000,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,  # the outer timeout covers the whole call, connecting included
        socket_connect_timeout=1.0,
        protocol=2,
    )


def _first_word(error: Exception) -> str:
    """The error code; the rest may quote keys, which name users."""
    return str(error).split(" ", 1)[0][:40]
