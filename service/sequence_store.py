"""The users' sequences in Redis: what is read and appended, and how.

- a call belongs to the store, not to the request: a cancelled request never abandons a reply;
- every value names its user, so a crossed reply is caught; the connection is then dropped and the read
  counts as failed;
- reads and writes are guarded apart (`redis_guard.py`: timeout, pool, breaker), so that slow writes
  cannot starve reads.

Commands used: ECHO, EVALSHA, EVAL (STRLEN, GET and SET inside the scripts), PING, and SELECT for a database
other than 0. One call takes several users' keys, so a Redis Cluster needs a proxy or a single shard.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from service.coalescer import Coalescer
from service.deadline import Deadline
from service.errors import DeadlineExceededError, StoreUnavailableError
from service.packed_sequence import (
    APPEND_SCRIPT,
    APPEND_SHA,
    MAX_VALUE_BYTES,
    READ_SCRIPT,
    READ_SHA,
    NotThisUserError,
    StoredSequence,
    unpack,
)
from service.redis_connections import TlsFiles
from service.redis_guard import Connection, RedisGuard, call_script, ping
from service.sequence_cache import SequenceCache

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
    cache_ms: float = 0.0
    tls: TlsFiles = TlsFiles()


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
        self._lanes = lanes = max(1, options.max_connections // 4)
        guard = partial(
            RedisGuard,
            url=url,
            tls=options.tls,
            breaker_threshold=options.breaker_threshold,
            breaker_cooldown_ms=options.breaker_cooldown_ms,
            on_state=on_state,
        )
        self._reads = guard("read", max_connections=lanes, timeout_ms=options.read_timeout_ms)
        writers = max(1, options.max_connections - lanes)
        self._writes = guard("write", max_connections=writers, timeout_ms=options.write_timeout_ms)
        self._coalescer: Coalescer[str, StoredSequence | None] = Coalescer(
            self._fetch, max_batch=MAX_USERS_PER_READ, lanes=lanes
        )
        self._cache = SequenceCache(options.cache_ms / 1000) if options.cache_ms else None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def breaker_state(self) -> str:
        """`closed` (healthy), `opened` or `half-opened`, of the reads."""
        return self._reads.state

    async def read(self, user_id: str, deadline: Deadline) -> StoredSequence | None:
        """The user's sequence, or None for a user without one.

        It waits for a call of its own, each of which ends after `read_timeout_ms`. Raises
        StoreUnavailableError, or DeadlineExceededError when the deadline comes first.
        """
        try:
            if self._cache is None:
                return await self._coalescer.get(user_id, give_up_at=deadline.at)
            with self._cache.reading(user_id) as kept:
                if not kept.found:
                    kept.keep(await self._coalescer.get(user_id, give_up_at=deadline.at))
                return kept.sequence
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed before Redis answered") from None

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
        """A round trip on every connection that reads, which opens them. Raises StoreUnavailableError."""
        await asyncio.gather(*(self._reads.call(ping) for _ in range(self._lanes)))

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

        async def read(connection: Connection) -> list[StoredSequence | Exception | None]:
            arguments = [*keys, str(MAX_VALUE_BYTES)]
            values = await call_script(connection, READ_SCRIPT, READ_SHA, len(keys), arguments)
            if not isinstance(values, list) or len(values) != len(keys):
                raise NotThisUserError("Redis answered another question")
            found = [_read(value, user_id) for value, user_id in zip(values, user_ids, strict=True)]
            if any(isinstance(value, Exception) for value in found):
                await connection.disconnect(nowait=True)
            return found

        return await self._reads.call(read)

    async def _append(self, events: Sequence[StoredEvent]) -> None:
        try:
            if self._cache is not None:
                self._cache.forget({event.user_id for event in events})
            await self._append_chunks(events)
        finally:
            if self._cache is not None:  # once more: it may have been read again meanwhile
                self._cache.forget({event.user_id for event in events})

    async def _append_chunks(self, events: Sequence[StoredEvent]) -> None:
        for chunk in _chunks(events, self._options.max_length):
            keys = [self._key(user_id) for user_id in chunk]
            limits = (self._options.max_length, self._options.ttl_s, MAX_VALUE_BYTES)
            arguments = [*keys, *map(str, limits)]
            for user_id, of_user in chunk.items():
                arguments += [user_id, str(len(of_user))]
                arguments += itertools.chain.from_iterable((str(e.timestamp), e.item_id) for e in of_user)
            append = partial(
                call_script,
                script=APPEND_SCRIPT,
                sha=APPEND_SHA,
                num_keys=len(keys),
                arguments=arguments,
            )
            await self._writes.call(append)


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
        cache_ms=settings.sequence_cache_ms,
        tls=TlsFiles(
            *map(_path, (settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file))
        ),
    )


def _path(path: Any) -> str | None:
    return None if path is None else str(path)
