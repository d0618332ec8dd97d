"""Calls of one kind to a Redis Cluster: each node has a pool, a breaker and a timeout of its own.

A node that is stopped or gone costs its own users the fallback and nobody else anything. One script call
takes one key here, for the keys of a call must share a slot; the calls for one node travel together. What
moves is followed (MOVED, ASK) within the time that the call has left, and nothing is tried twice otherwise.

redis-py's own RedisCluster is not used: it sends ASKING on whichever connection is free, which need not be
the one that the command takes; while it reads the map of slots every caller waits, one silent node after
another; a lost slot makes it close the connections to all nodes and sleep 250 ms; its pools raise when they
are full.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ResponseError

from service.cluster_slots import ClusterSlots, slot_of
from service.errors import StoreUnavailableError
from service.redis_guard import Connection, RedisGuard, call_each, failure_of, ping
from service.redis_url import Address, node_url
from service.script_runner import Result, ScriptCall, Understand, without_doubt

MAX_REDIRECTIONS = 4
_STATES = ("closed", "half-opened", "opened")


class _Target(NamedTuple):
    """asking: the slot is on its way there"""

    node: Address
    asking: bool = False


class RedisCluster:
    """A `ScriptRunner`; those of one cluster share `slots`."""

    def __init__(
        self,
        operation: str,
        url: str,
        *,
        slots: ClusterSlots,
        guard: Callable[..., RedisGuard],
        timeout_ms: float,
        on_state: Callable[[str, str], None] | None,
    ) -> None:
        """guard: of its arguments those that the nodes have in common

        on_state: called with (operation, state) whenever the breaker of a node changes; the worst counts.
        """
        self._operation = operation
        self._url = url
        self._slots = slots
        self._guard = partial(guard, operation, timeout_ms=timeout_ms, on_state=self._changed)
        self._timeout_s = timeout_ms / 1000
        self._on_state = on_state
        self._guards: dict[Address, RedisGuard] = {}
        self._num_calls: Counter[Address] = Counter()
        self._nodes_then = slots.nodes
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> str:
        """The worst of its nodes: `closed`, `half-opened` or `opened`."""
        return max((guard.state for guard in self._guards.values()), key=_STATES.index, default="closed")

    def place_of(self, key: str) -> Hashable:
        """The node that has it, as far as is known."""
        return self._slots.owner(slot_of(key))

    async def run(self, script: ScriptCall, understand: Understand[Result]) -> list[Result | Exception]:
        """As many results as keys, in their order; those of a node that failed are StoreUnavailableErrors.

        Raises StoreUnavailableError when no node told who has what.
        """
        give_up_at = time.monotonic() + self._timeout_s
        await self._slots.ready(self._timeout_s)
        self._leave_nodes_that_are_gone()
        outcomes: list[Result | Exception | _Target] = [self._target_of(key) for key in script.keys]
        for _ in range(1 + MAX_REDIRECTIONS):
            targets: dict[_Target, list[int]] = {}
            for number, outcome in enumerate(outcomes):
                if isinstance(outcome, _Target):
                    targets.setdefault(outcome, []).append(number)
            if not targets:
                break
            asked = [
                self._ask(target, script, which, understand, give_up_at) for target, which in targets.items()
            ]
            for which, told in zip(targets.values(), await asyncio.gather(*asked), strict=True):
                for number, outcome in zip(which, told, strict=True):
                    outcomes[number] = outcome
        return [_lost() if isinstance(outcome, _Target) else outcome for outcome in outcomes]

    async def ping(self, num_connections: int) -> None:
        """A round trip on so many connections of each node. Raises StoreUnavailableError."""
        await self._slots.ready(self._timeout_s)
        guards = [self._guard_of(node) for node in self._slots.nodes]
        await asyncio.gather(*(guard.call(ping) for guard in guards for _ in range(num_connections)))

    async def close(self) -> None:
        """Close every connection, those that read the map too."""
        await asyncio.gather(*self._closing, return_exceptions=True)
        await asyncio.gather(*(guard.close() for guard in self._guards.values()))
        await self._slots.close()

    def _target_of(self, key: str) -> _Target | StoreUnavailableError:
        owner = self._slots.owner(slot_of(key))
        if owner is None:
            self._slots.refresh()
            return StoreUnavailableError("cluster_down", "no node of the Redis Cluster has this user's slot")
        return _Target(owner)

    async def _ask(
        self,
        target: _Target,
        script: ScriptCall,
        which: Sequence[int],
        understand: Understand[Result],
        give_up_at: float,
    ) -> list[Result | Exception | _Target]:
        """What one node says of these keys of the call."""

        async def ask(connection: Connection) -> list[Result | Exception | _Target]:
            replies = await _call_scripts(connection, script, which, asking=target.asking)
            outcomes: list[Result | Exception | _Target] = []
            for number, reply in zip(which, replies, strict=True):
                if isinstance(reply, ResponseError):
                    outcomes.append(self._refused(reply, target))
                else:
                    found: list[Result | Exception] = understand(reply, [number])
                    found = await without_doubt(connection, found)
                    outcomes += found
            return outcomes

        left_s = give_up_at - time.monotonic()
        self._num_calls[target.node] += 1
        try:
            if left_s <= 0:
                raise StoreUnavailableError("timeout", "Redis did not answer in time")
            return await self._guard_of(target.node).call(ask, within_s=left_s)
        except StoreUnavailableError as error:
            self._slots.refresh()  # somebody else may have its slots now
            return [error] * len(which)
        finally:
            self._num_calls[target.node] -= 1

    def _refused(self, refusal: ResponseError, target: _Target) -> _Target | StoreUnavailableError:
        """Where a refusal sends the key, or why there is no answer."""
        if isinstance(refusal, AskError):  # MovedError is one of them
            to = Address(refusal.host or target.node.host, refusal.port)
            if isinstance(refusal, MovedError):
                self._slots.moved(refusal.slot_id, to)
            return _Target(to, asking=not isinstance(refusal, MovedError))
        if isinstance(refusal, ClusterDownError):
            self._slots.refresh()
        return failure_of(refusal)

    def _guard_of(self, node: Address) -> RedisGuard:
        if node not in self._guards:
            self._guards[node] = self._guard(url=node_url(self._url, node))
        return self._guards[node]

    def _leave_nodes_that_are_gone(self) -> None:
        """Close the connections to nodes that have no slots any more, once no call is under way there."""
        if self._nodes_then is self._slots.nodes:
            return
        gone = self._guards.keys() - self._slots.nodes
        for node in [node for node in gone if not self._num_calls[node]]:
            closing = asyncio.get_running_loop().create_task(self._guards.pop(node).close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            del self._num_calls[node]
        if not self._guards.keys() - self._slots.nodes:
            self._nodes_then = self._slots.nodes
        if gone:
            self._changed(self._operation, self.state)

    def _changed(self, operation: str, state: str) -> None:
        if self._on_state is not None:
            self._on_state(operation, self.state)


async def _call_scripts(
    connection: Connection, script: ScriptCall, which: Sequence[int], *, asking: bool
) -> list[Any]:
    """The replies to one script call for each of these keys, sent together."""
    replies = await _each(connection, "EVALSHA", script.sha, script, which, asking=asking)
    unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if unknown:  # a new or restarted node has not seen it
        again = [which[at] for at in unknown]
        texts = await _each(connection, "EVAL", script.script, script, again, asking=asking)
        for at, reply in zip(unknown, texts, strict=True):
            replies[at] = reply
    return replies


async def _each(
    connection: Connection, how: str, what: str, script: ScriptCall, which: Sequence[int], *, asking: bool
) -> list[Any]:
    commands = [(how, what, 1, *script.arguments([number])) for number in which]
    if not asking:
        return await call_each(connection, commands)
    allowed: list[Any] = [("ASKING",)] * (2 * len(commands))  # each opens the door for the next command only
    allowed[1::2] = commands
    replies = await call_each(connection, allowed)
    doors = zip(replies[::2], replies[1::2], strict=True)
    return [opened if isinstance(opened, ResponseError) else reply for opened, reply in doors]


def _lost() -> StoreUnavailableError:
    return StoreUnavailableError("cluster_down", "the nodes of the Redis Cluster send a key back and forth")
