"""The users' sequences in Redis, and the only file that knows redis-py.

Built around what went wrong with this client before (all measured or on record):
- no retries, an outer timeout in milliseconds: the client's defaults retried a stopped server for 59 s;
- a call belongs to the store, not to the request: a cancelled request never abandons a reply;
- every call echoes a nonce before its answer and every value names its user, so a crossed reply is
  caught; the connection is then dropped and the read counts as failed;
- bounded pools that wait no longer than the call may take; reads and writes apart, so that slow
  writes cannot starve reads;
- a circuit breaker (one for reads, one for writes): a dead Redis costs microseconds, not timeouts, and
  one trial at a time finds out that it is back.

Commands used: ECHO, MGET, EVALSHA, EVAL (GET and SET inside the script), PING. One MGET takes several
keys, so a Redis Cluster needs a proxy or a single shard.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from hiredis import pack_command
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from service.coalescer import Coalescer
from service.deadline import Deadline
from service.errors import StoreUnavailableError
from service.packed_sequence import APPEND_SCRIPT, APPEND_SHA, NotThisUserError, StoredSequence, unpack

Result = TypeVar("Result")
MAX_WRITES_WAITING = 256
MAX_USERS_PER_READ = 64
MAX_USERS_PER_WRITE = 32
MAX_EVENTS_PER_WRITE = 256
"""These two bound how long one script call holds Redis up: a few milliseconds."""


class StoredEvent(NamedTuple):
    """One behaviour to append.   timestamp: unix seconds"""

    user_id: str
    item_id: str
    timestamp: int


class StoreOptions(NamedTuple):
    """How the store behaves; see `settings.py` for what each means."""

    namespace: str = "t2diff"
    read_timeout_ms: float = 25.0
    write_timeout_ms: float = 1000.0
    max_connections: int = 8
    breaker_threshold: int = 5
    breaker_cooldown_ms: float = 500.0
    max_length: int = 200
    ttl_s: int = 90 * 86_400


class SequenceStore:
    """Reads and appends sequences. Every failure is a StoreUnavailableError with a `reason` label."""

    def __init__(
        self,
        url: str,
        options: StoreOptions = StoreOptions(),
        on_state: Callable[[str, str], None] | None = None,
    ) -> None:
        """on_state: called with (operation, breaker state) whenever a breaker changes."""
        self._options = options
        lanes = max(1, options.max_connections // 4)
        self._reads = _Guard(
            "read", _pool(url, lanes, options.read_timeout_ms), options, options.read_timeout_ms, on_state
        )
        writers = max(1, options.max_connections - lanes)
        self._writes = _Guard(
            "write",
            _pool(url, writers, options.write_timeout_ms),
            options,
            options.write_timeout_ms,
            on_state,
        )
        self._coalescer: Coalescer[str, StoredSequence | None] = Coalescer(
            self._fetch, max_batch=MAX_USERS_PER_READ, lanes=lanes
        )
        self._background: set[asyncio.Task[None]] = set()

    @property
    def breaker_state(self) -> str:
        """`closed` (healthy), `opened` or `half-opened`, of the reads."""
        return self._reads.state

    async def read(self, user_id: str, deadline: Deadline) -> StoredSequence | None:
        """The user's sequence, or None for a user without one. Raises StoreUnavailableError."""
        try:
            give_up_at = deadline.capped_ms(self._options.read_timeout_ms)
            return await self._coalescer.get(user_id, give_up_at=give_up_at)
        except TimeoutError:
            raise StoreUnavailableError("timeout", "Redis did not answer in time") from None

    async def append(self, events: Sequence[StoredEvent]) -> None:
        """Store all events; what was stored already stays single, so a failed call may be repeated whole."""
        if len(self._background) >= MAX_WRITES_WAITING:
            raise StoreUnavailableError("busy", "too many events already wait for Redis; send fewer at once")
        task = asyncio.get_running_loop().create_task(self._append(events))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_retrieve)  # its caller may be gone
        await asyncio.shield(task)

    async def ping(self) -> None:
        """One round trip. Raises StoreUnavailableError."""
        await self._reads.call(_ping)

    async def close(self) -> None:
        """Let what is on its way end, then close every connection."""
        await self._coalescer.close()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._reads.close()
        await self._writes.close()

    def _key(self, user_id: str) -> str:
        return f"{self._options.namespace}:seq1:{user_id}"

    async def _fetch(self, user_ids: list[str]) -> list[StoredSequence | Exception | None]:
        keys = [self._key(user_id) for user_id in user_ids]

        async def mget(connection: AbstractConnection) -> list[StoredSequence | Exception | None]:
            values = await _call(connection, "MGET", *keys)
            if not isinstance(values, list) or len(values) != len(keys):
                raise NotThisUserError("Redis answered another question")
            read = [_read(value, user_id) for value, user_id in zip(values, user_ids, strict=True)]
            if any(isinstance(value, Exception) for value in read):
                await connection.disconnect(nowait=True)
            return read

        return await self._reads.call(mget)

    async def _append(self, events: Sequence[StoredEvent]) -> None:
        for chunk in _chunks(events, self._options.max_length):
            keys = [self._key(user_id) for user_id in chunk]
            arguments = [*keys, str(self._options.max_length), str(self._options.ttl_s)]
            for user_id, of_user in chunk.items():
                arguments += [user_id, str(len(of_user))]
                arguments += itertools.chain.from_iterable((str(e.timestamp), e.item_id) for e in of_user)
            await self._writes.call(partial(_append, num_keys=len(keys), arguments=arguments))


class _Guard:
    """One kind of call: its pool, its breaker, its timeout, and one name for every way to fail."""

    def __init__(
        self,
        operation: str,
        pool: BlockingConnectionPool,
        options: StoreOptions,
        timeout_ms: float,
        on_state: Callable[[str, str], None] | None,
    ) -> None:
        self._operation = operation
        self._pool = pool
        self._timeout_s = timeout_ms / 1000
        self._breakers = AsyncCircuitBreakerFactory(
            default_threshold=options.breaker_threshold,
            default_ttl=options.breaker_cooldown_ms / 1000,
            exclude=[ResponseError],  # an answer, though an unwelcome one: the server is there
        )
        if on_state is not None:
            self._breakers.add_listener(
                lambda name, kind, event: on_state(name, self.state) if kind == "state_changed" else None
            )
        self._breaker: Any = None
        self._on_trial = False
        self._kept: list[AbstractConnection] = []
        self._num_waiting = 0  # calls that wait for the pool

    @property
    def state(self) -> str:
        return self._breaker.context.state if self._breaker else "closed"

    async def call(self, command: Callable[[AbstractConnection], Awaitable[Result]]) -> Result:
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

    async def _on_connection(self, command: Callable[[AbstractConnection], Awaitable[Result]]) -> Result:
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

    async def _take(self) -> AbstractConnection:
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


_nonces = itertools.count(int.from_bytes(os.urandom(4), "little"))


async def _call(connection: AbstractConnection, *command: Any) -> Any:
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


async def _ping(connection: AbstractConnection) -> None:
    await _call(connection, "PING")


async def _append(connection: AbstractConnection, num_keys: int, arguments: list[str]) -> None:
    try:
        await _call(connection, "EVALSHA", APPEND_SHA, num_keys, *arguments)
    except NoScriptError:  # a restarted Redis has forgotten it
        await _call(connection, "EVAL", APPEND_SCRIPT, num_keys, *arguments)


def _chunks(events: Sequence[StoredEvent], max_length: int) -> Iterator[dict[str, list[StoredEvent]]]:
    """Events by user, ordered, without repeats and without what would be dropped at once; bounded calls."""
    by_user: dict[str, list[StoredEvent]] = {}
    for event in dict.fromkeys(events):
        by_user.setdefault(event.user_id, []).append(event)
    chunk: dict[str, list[StoredEvent]] = {}
    for user_id, of_user in by_user.items():
        newest = sorted(of_user, key=lambda event: event.timestamp)[-max_length:]
        size = sum(map(len, chunk.values())) + len(newest)
        if chunk and (len(chunk) == MAX_USERS_PER_WRITE or size > MAX_EVENTS_PER_WRITE):
            yield chunk
            chunk = {}
        chunk[user_id] = newest
    yield chunk


def _read(value: Any, user_id: str) -> StoredSequence | Exception | None:
    if value is None:
        return None
    try:
        return unpack(value, user_id)
    except NotThisUserError as error:
        return StoreUnavailableError("crossed", str(error))


def _first_word(error: Exception) -> str:
    """The error code; the rest may quote keys, which name users."""
    return str(error).split(" ", 1)[0][:40]


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def options_of(settings: Any) -> StoreOptions:
    """The store's part of the settings."""
    return StoreOptions(
        namespace=settings.redis_namespace,
        read_timeout_ms=settings.redis_read_timeout_ms,
        write_timeout_ms=settings.redis_write_timeout_ms,
        max_connections=settings.redis_max_connections,
        breaker_threshold=settings.breaker_threshold,
        breaker_cooldown_ms=settings.breaker_cooldown_ms,
        max_length=settings.sequence_max_length,
        ttl_s=max(1, round(settings.sequence_ttl_days * 86_400)),
    )
