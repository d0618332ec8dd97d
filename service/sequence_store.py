"""The users' sequences in Redis: what is read and appended, and how.

- a call belongs to the store, not to the request: a cancelled request never abandons a reply;
- every value names its user, so a crossed reply is caught; the connection is then dropped and the read
  counts as failed;
- reads and writes are guarded apart (`redis_guard.py`: timeout, pool, breaker), so that slow writes
  cannot starve reads.

Commands used: ECHO, EVALSHA, EVAL (STRLEN, GET and SET inside the scripts), PING, SELECT for a database
other than 0, and CLUSTER SLOTS and ASKING with a cluster. All that is kept of a user lies under one key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
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
from service.redis_runners import redis_runners
from service.script_runner import ScriptCall
from service.sequence_cache import SequenceCache
from service.store_options import StoreOptions

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
        self._lanes = max(1, options.max_connections // 4)
        self._reads, self._writes = redis_runners(url, options, self._lanes, on_state)
        self._coalescers: dict[Hashable, Coalescer[str, StoredSequence | None]] = {}
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
                return await self._coalescer_of(user_id).get(user_id, give_up_at=deadline.at)
            with self._cache.reading(user_id) as kept:
                if not kept.found:
                    kept.keep(await self._coalescer_of(user_id).get(user_id, give_up_at=deadline.at))
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
        await self._reads.ping(self._lanes)

    async def close(self) -> None:
        """Let what is on its way end, then close every connection."""
        await asyncio.gather(*(coalescer.close() for coalescer in self._coalescers.values()))
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._reads.close()
        await self._writes.close()

    def _key(self, user_id: str) -> str:
        return f"{self._options.namespace}:seq1:{user_id}"

    def _coalescer_of(self, user_id: str) -> Coalescer[str, StoredSequence | None]:
        """That of the user's place: a place which does not answer holds up nobody else."""
        place = self._reads.place_of(self._key(user_id))
        coalescer = self._coalescers.get(place)
        if coalescer is None:
            coalescer = Coalescer(self._fetch, max_batch=MAX_USERS_PER_READ, lanes=self._lanes)
            self._coalescers[place] = coalescer
        return coalescer

    async def _fetch(self, user_ids: list[str]) -> list[StoredSequence | Exception | None]:
        keys = [self._key(user_id) for user_id in user_ids]

        def understand(reply: Any, which: Sequence[int]) -> list[StoredSequence | Exception | None]:
            if not isinstance(reply, list) or len(reply) != len(which):
                raise NotThisUserError("Redis answered another question")
            return [_read(value, user_ids[number]) for value, number in zip(reply, which, strict=True)]

        script = ScriptCall(READ_SCRIPT, READ_SHA, keys, shared=[str(MAX_VALUE_BYTES)], own=())
        return await self._reads.run(script, understand)

    async def _append(self, events: Sequence[StoredEvent]) -> None:
        try:
            if self._cache is not None:
                self._cache.forget({event.user_id for event in events})
            await self._append_chunks(events)
        finally:
            if self._cache is not None:  # once more: it may have been read again meanwhile
                self._cache.forget({event.user_id for event in events})

    async def _append_chunks(self, events: Sequence[StoredEvent]) -> None:
        """Place by place at once: what another place does not take, this one does."""
        by_place: dict[Hashable, list[StoredEvent]] = {}
        for event in dict.fromkeys(events):
            by_place.setdefault(self._writes.place_of(self._key(event.user_id)), []).append(event)
        appends = (self._append_in_place(of_place) for of_place in by_place.values())
        for outcome in await asyncio.gather(*appends, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _append_in_place(self, events: Sequence[StoredEvent]) -> None:
        limits = [*map(str, (self._options.max_length, self._options.ttl_s, MAX_VALUE_BYTES))]
        for chunk in _chunks(events, self._options.max_length):
            keys = [self._key(user_id) for user_id in chunk]
            own = [
                [
                    user_id,
                    str(len(of_user)),
                    *chain.from_iterable((str(e.timestamp), e.item_id) for e in of_user),
                ]
                for user_id, of_user in chunk.items()
            ]
            script = ScriptCall(APPEND_SCRIPT, APPEND_SHA, keys, limits, own)
            for outcome in await self._writes.run(script, _appended):
                if isinstance(outcome, Exception):
                    raise outcome


def _chunks(events: Sequence[StoredEvent], max_length: int) -> Iterator[dict[str, list[StoredEvent]]]:
    """Events by user, ordered, without what would be dropped at once; bounded calls."""
    by_user: dict[str, list[StoredEvent]] = {}
    for event in events:
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


def _appended(reply: Any, which: Sequence[int]) -> list[Exception | None]:
    if reply != len(which):
        raise NotThisUserError("Redis answered another question")
    return [None] * len(which)


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
