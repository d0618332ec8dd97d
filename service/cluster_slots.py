"""Which node of a Redis Cluster holds which key: the map of its 16,384 slots, and how it is kept up to date.

A wrong map costs a redirection, never a wrong answer: a node that does not hold a key says who does. So the
map is read anew in the background only, after a redirection or a failure, from one node after another.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from binascii import crc_hqx
from collections.abc import Callable
from functools import partial
from typing import Any

from service.errors import StoreUnavailableError
from service.packed_sequence import NotThisUserError
from service.redis_guard import Connection, RedisGuard, call
from service.redis_url import Address, node_url, seeds_of
from service.reply_timeout import ReplyTimeout

NUM_SLOTS = 16_384
REST_S = 0.2
"""Between two readings of the map, whatever goes wrong meanwhile."""
MAP_TIMEOUT_MS = 200.0
"""For one node to connect and tell the map; then the next one is asked."""

Owners = list[Address | None]


def slot_of(key: str) -> int:
    """CRC16 of the key, or of what is between its first `{` and the next `}`, as the server reckons it."""
    hashed = key.encode()
    start = hashed.find(b"{")
    if start >= 0 and (end := hashed.find(b"}", start)) > start + 1:
        hashed = hashed[start + 1 : end]
    return crc_hqx(hashed, 0) % NUM_SLOTS


class ClusterSlots:
    """The map as it was last told. `nodes` are those that hold slots; none before the map was read once."""

    def __init__(self, url: str, guard: Callable[..., RedisGuard]) -> None:
        """guard: of its arguments those that the nodes have in common"""
        self._url = url
        self._guard = guard
        self._seeds = seeds_of(url)
        self._owners: Owners = [None] * NUM_SLOTS
        self._guards: dict[Address, RedisGuard] = {}
        self._turn = itertools.count()
        self._reading: asyncio.Task[None] | None = None
        self._rest_until = 0.0
        self._failure = StoreUnavailableError("connection", "no node of the Redis Cluster was asked yet")
        self.nodes: frozenset[Address] = frozenset()

    def owner(self, slot: int) -> Address | None:
        """Who holds a slot, as far as is known."""
        return self._owners[slot]

    def moved(self, slot: int, to: Address) -> None:
        """A node said so. Others may have moved too, so the whole map is read as well."""
        self._owners[slot] = to
        self.refresh()

    def refresh(self) -> None:
        """Read the map anew in the background, unless that is under way or was a moment ago."""
        if self._reading is None and time.monotonic() >= self._rest_until:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    async def ready(self, timeout_s: float) -> None:
        """Wait for the first map. Raises StoreUnavailableError."""
        if self.nodes:
            return
        self.refresh()
        if self._reading is not None:
            try:
                async with ReplyTimeout(timeout_s):
                    await asyncio.shield(self._reading)
            except TimeoutError:
                raise StoreUnavailableError("timeout", "no node of the Redis Cluster answered yet") from None
        if not self.nodes:
            raise StoreUnavailableError(self._failure.reason, str(self._failure))

    async def close(self) -> None:
        """Stop reading, and close every connection that it took."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        for guard in self._guards.values():
            await guard.close()

    async def _read(self) -> None:
        try:
            for node in self._next_nodes():
                try:
                    owners = await self._guard_of(node).call(partial(_told, asked=node))
                except StoreUnavailableError as error:
                    self._failure = error
                    continue
                self._owners = owners
                self.nodes = frozenset(owner for owner in owners if owner is not None)
                await self._forget_others()
                return
        finally:
            self._reading = None
            self._rest_until = time.monotonic() + REST_S

    def _next_nodes(self) -> list[Address]:
        """All that are known, beginning with another one each time: the last may have told an old map."""
        known = [*sorted(self.nodes), *(seed for seed in self._seeds if seed not in self.nodes)]
        first = next(self._turn) % len(known)
        return known[first:] + known[:first]

    def _guard_of(self, node: Address) -> RedisGuard:
        if node not in self._guards:
            self._guards[node] = self._guard(
                "map",
                url=node_url(self._url, node),
                max_connections=1,
                timeout_ms=MAP_TIMEOUT_MS,
                breaker_threshold=1,
                on_state=None,
            )
        return self._guards[node]

    async def _forget_others(self) -> None:
        for node in set(self._guards) - self.nodes - set(self._seeds):
            await self._guards.pop(node).close()


async def _told(connection: Connection, asked: Address) -> Owners:
    """The map as one node has it."""
    ranges = await call(connection, "CLUSTER", "SLOTS")
    owners: Owners = [None] * NUM_SLOTS
    try:
        for first, last, primary, *_ in ranges:
            owners[first : last + 1] = [_address(primary, asked)] * (last + 1 - first)
    except (TypeError, ValueError, IndexError):
        raise NotThisUserError("Redis told no map of slots") from None
    if not ranges or len(owners) != NUM_SLOTS:
        raise StoreUnavailableError("cluster_down", "this node of the Redis Cluster knows of no slots")
    return owners


def _address(told: Any, asked: Address) -> Address:
    """A node that does not know its own name is the one that was asked, as the specification says."""
    host = told[0].decode() if told[0] else ""
    return Address(asked.host if host in ("", "?") else host, int(told[1]))
