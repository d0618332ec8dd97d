"""One kind of call to Redis: its pool, its breaker, its timeout, and one name for every way to fail.

Built around what went wrong with this client before (all measured or on record):
- no retries, an outer timeout in milliseconds: the client's defaults retried a stopped server for 59 s;
- every call echoes a nonce before its answer, so a crossed reply is caught; the connection is then
  dropped and the call counts as failed;
- bounded pools that wait no longer than the call may take; a connection that is made too slowly for the
  call that wanted it is kept for the next one, or a slow handshake would burn one connection a call;
- a circuit breaker: a dead Redis costs microseconds, not timeouts, and one trial at a time finds out
  that it is back.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from hiredis import pack_command
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from redis.asyncio.connection import AbstractConnection as Connection
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError

from service.errors import StoreUnavailableError
from service.packed_sequence import NotThisUserError
from service.redis_connections import CONNECT_TIMEOUT_S, TlsFiles, connection_pool
from service.reply_timeout import ReplyTimeout

Result = TypeVar("Result")
_REFUSALS = {
    "OOM": ("full", "Redis is full: raise its maxmemory or let it evict; reads go on"),
    "READONLY": ("read_only", "this Redis is a replica: name the primary, or the sentinels, in redis_url"),
    "NOPERM": ("no_permission", "Redis's ACL forbids a command that is needed; the README has the line"),
    "MISCONF": ("disk", "Redis cannot write to its disk and takes nothing until it can"),
    "NOREPLICAS": ("no_replicas", "Redis has fewer replicas in reach than its min-replicas-to-write"),
    "MOVED": ("cluster", "this Redis is a node of a cluster: write redis+cluster:// in redis_url"),
    "CROSSSLOT": ("cluster", "this Redis is a node of a cluster: write redis+cluster:// in redis_url"),
    "CLUSTERDOWN": (
        "cluster_down",
        "a part of the Redis Cluster is down: it waits for a replica, or for slots to be assigned",
    ),
}
"""Code of a refusal -> label of the metrics and reason of the fallback, and what to do."""
_NO_PERMISSION = re.compile("user executing the script|ACL failure")
_CODE = re.compile(rf"\b({'|'.join(_REFUSALS)})\b")


class RedisGuard:
    """Runs calls of one kind; each way to fail is a StoreUnavailableError with a reason."""

    def __init__(
        self,
        operation: str,
        url: str,
        *,
        tls: TlsFiles,
        max_connections: int,
        timeout_ms: float,
        breaker_threshold: int,
        breaker_cooldown_ms: float,
        on_state: Callable[[str, str], None] | None,
    ) -> None:
        """on_state: called with (operation, breaker state) whenever the breaker changes."""
        self._operation = operation
        self._pool = connection_pool(url, tls, max_connections=max_connections, wait_s=timeout_ms / 1000)
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
        self._background: set[asyncio.Future[Any]] = set()  # connections whose callers gave up

    @property
    def state(self) -> str:
        return self._breaker.context.state if self._breaker else "closed"

    async def call(
        self, command: Callable[[Connection], Awaitable[Result]], *, within_s: float | None = None
    ) -> Result:
        """Run `command` on a connection of its own.   within_s: less time than the timeout"""
        if self._breaker is None:
            self._breaker = await self._breakers.get_breaker(self._operation)
        if self._on_trial:
            raise StoreUnavailableError("breaker_open", "Redis is being tried again after failures")
        try:
            async with self._breaker:
                self._on_trial = self._breaker.context.state == "half-opened"
                try:
                    async with ReplyTimeout(self._timeout_s if within_s is None else within_s):
                        return await self._on_connection(command)
                finally:
                    self._on_trial = False
        except OpenedState as error:
            # The breaker raises its own state again and again: it must not collect frames, and it goes by
            # the wall clock, which may be set back.
            error.__traceback__ = None
            error.opened_at = min(error.opened_at, time.time())
            raise StoreUnavailableError(
                "breaker_open", "Redis is left alone for a moment after failures"
            ) from None
        except TimeoutError:
            raise StoreUnavailableError("timeout", "Redis did not answer in time") from None
        except (NotThisUserError, RedisError, OSError) as error:
            raise failure_of(error) from None

    async def _on_connection(self, command: Callable[[Connection], Awaitable[Result]]) -> Result:
        connection = await self._take()
        clean = False
        try:
            result = await command(connection)
            clean = True
            return result
        except ResponseError as error:
            # A complete reply was read. A primary that was demoted is left, for the name may lead elsewhere.
            clean = _code(error) != "READONLY"
            if not clean:
                await connection.disconnect(nowait=True)
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
        connecting = asyncio.ensure_future(self._connect())
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._background.add(connecting)
            connecting.add_done_callback(self._give_back)
            raise
        finally:
            self._num_waiting -= 1

    async def _connect(self) -> Connection:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await self._pool.get_connection()

    def _give_back(self, connecting: asyncio.Future[Connection]) -> None:
        """Its caller gave up while it was being made: it is for the next one."""
        self._background.discard(connecting)
        if connecting.cancelled() or connecting.exception() is not None:
            return
        releasing = asyncio.ensure_future(self._pool.release(connecting.result()))
        self._background.add(releasing)
        releasing.add_done_callback(self._background.discard)

    async def close(self) -> None:
        """Close every connection, those still being made too."""
        for making in self._background:
            making.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._pool.aclose()


_nonces = itertools.count(int.from_bytes(os.urandom(4), "little"))


async def call(connection: Connection, *command: Any) -> Any:
    """Send ECHO nonce and the command together; an answer without its echo is somebody else's."""
    await _send(connection, [command])
    return await connection.read_response()


async def call_each(connection: Connection, commands: Sequence[Any]) -> list[Any]:
    """Send ECHO nonce and the commands together; a refusal is a ResponseError among the replies."""
    await _send(connection, commands)
    replies = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


async def _send(connection: Connection, commands: Sequence[Any]) -> None:
    """Returns when the echo was read: what comes next is the reply to the first command."""
    nonce = b"%x" % next(_nonces)
    packed = [pack_command(each) for each in (("ECHO", nonce), *commands)]  # in C; redis-py's own is not
    await connection.send_packed_command(packed)
    try:
        echoed = await connection.read_response()
    except ResponseError:
        await connection.disconnect(nowait=True)  # the other replies are still on their way
        raise
    if echoed != nonce:
        raise NotThisUserError("Redis answered another question")


async def ping(connection: Connection) -> None:
    """One round trip."""
    await call(connection, "PING")


async def call_script(
    connection: Connection, script: str, sha: str, num_keys: int, arguments: list[str]
) -> Any:
    """Run a script by its SHA-1, and send the script itself only where the server does not have it."""
    try:
        return await call(connection, "EVALSHA", sha, num_keys, *arguments)
    except NoScriptError:  # a restarted Redis has forgotten it
        return await call(connection, "EVAL", script, num_keys, *arguments)


def failure_of(error: Exception) -> StoreUnavailableError:
    """What went wrong, in words that quote neither keys, which name users, nor the password."""
    if isinstance(error, NotThisUserError):
        return StoreUnavailableError("crossed", str(error))
    if isinstance(error, AuthenticationError):
        return StoreUnavailableError("password", "Redis does not accept the user or password of redis_url")
    if "cluster support disabled" in str(error):
        return StoreUnavailableError("no_cluster", "this Redis is no cluster: write redis:// in redis_url")
    if isinstance(error, ResponseError):
        return StoreUnavailableError(*_REFUSALS.get(_code(error), ("refused", "Redis refused the command")))
    if "SSL" in str(error):
        return StoreUnavailableError("tls", "Redis and this service do not accept each other's certificates")
    return StoreUnavailableError("connection", f"Redis cannot be reached: {type(error).__name__}")


def _code(error: ResponseError) -> str:
    """The code of a refusal, which an error inside a script has somewhere in its text, or only says so."""
    text = f"{error.status_code} {error}"
    found = _CODE.search(text)
    return found[1] if found else "NOPERM" if _NO_PERMISSION.search(text) else ""
