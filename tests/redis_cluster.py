"""A real Redis Cluster for the tests: redis-servers of their own, with slots as its specification says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from loadtest.stress.redis_process import RedisProcess, free_port
from service.cluster_slots import NUM_SLOTS, slot_of

_BUS = 10_000
"""A node talks to the others on its port plus this."""
_GIVE_UP_S = 40.0


class ClusterProcesses:
    """`with ClusterProcesses(folder) as cluster: cluster.url`

    Three primaries that share the slots in order, and `num_replicas` replicas of the first. A node that is
    lost loses its own slots only, and is not replaced by itself: a vote would take as long as its timeout,
    which is long here, for a busy machine must not look like a lost node. `take_over` replaces it at once.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        num_replicas: int = 0,
        announced: Callable[[int], int] | None = None,
    ) -> None:
        """announced: a node's own port -> the one that it tells clients"""
        self._folder = folder
        self._options = options
        self._num_replicas = num_replicas
        self._announced = announced
        self._stack = ExitStack()
        self._moved: dict[int, int] = {}
        self.nodes: list[RedisProcess] = []

    @property
    def url(self) -> str:
        """Nobody listens at the first of the nodes that are named."""
        named = [free_port(), *(node.port for node in self.nodes)]
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in named)

    @property
    def primaries(self) -> list[RedisProcess]:
        return self.nodes[:3]

    def __enter__(self) -> ClusterProcesses:
        for number in range(3 + self._num_replicas):
            options = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]
            options += ["--cluster-node-timeout", "30000", "--appendonly", "no", *self._options]
            port = _port_with_bus()
            if self._announced is not None:
                options += ["--cluster-announce-port", str(self._announced(port))]
            node = RedisProcess(self._folder / str(number), *options, port=port)
            self.nodes.append(self._stack.enter_context(node))
        try:
            with ThreadPoolExecutor(1) as pool:  # this thread may be running a loop
                pool.submit(asyncio.run, self._form()).result()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            node.go_on()
        self._stack.close()

    def holder(self, key: str) -> RedisProcess:
        """The primary that holds the key's slot."""
        slot = slot_of(key)
        return self.nodes[self._moved.get(slot, slot * 3 // NUM_SLOTS)]

    def key_of(self, number: int, name: str = "user") -> str:
        """The first of user0, user1, … whose sequence lies on that primary."""
        users = (f"{name}{n}" for n in range(1000))
        return next(user for user in users if self.holder(f"t2diff:seq1:{user}") is self.nodes[number])

    async def open_slot(self, key: str, to: int) -> None:
        """Begin to move the slot of `key` as redis-cli does: from now on its keys may be at either node."""
        slot, source, target = slot_of(key), self.holder(key), self.nodes[to]
        await said(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", await said(source, "CLUSTER", "MYID"))
        await said(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", await said(target, "CLUSTER", "MYID"))

    async def move_keys(self, key: str, to: int) -> None:
        """All that are in the open slot."""
        source = self.holder(key)
        while keys := await said(source, "CLUSTER", "GETKEYSINSLOT", slot_of(key), 100):
            for each in keys:
                await said(source, "MIGRATE", "127.0.0.1", self.nodes[to].port, each, 0, 5000)

    async def close_slot(self, key: str, to: int) -> None:
        """The slot belongs to the other node from now on."""
        new = await said(self.nodes[to], "CLUSTER", "MYID")
        for node in (self.nodes[to], *self.primaries):
            await said(node, "CLUSTER", "SETSLOT", slot_of(key), "NODE", new)
        self._moved[slot_of(key)] = to

    async def replicated(self) -> None:
        """Wait until the replica has what the first primary has."""
        give_up_at = time.monotonic() + _GIVE_UP_S
        while int(await said(self.nodes[0], "WAIT", 1, 1000)) < 1:
            assert time.monotonic() < give_up_at, "the replica does not follow"

    async def take_over(self) -> None:
        """Let the replica have the first primary's slots, as a vote of the others would after the timeout."""
        self.nodes[0], self.nodes[3] = self.nodes[3], self.nodes[0]
        await said(self.nodes[0], "CLUSTER", "FAILOVER", "TAKEOVER")

    async def up(self) -> None:
        """Wait until every node knows every other and takes commands."""
        give_up_at = time.monotonic() + _GIVE_UP_S
        for node in self.nodes:
            while True:
                told = dict(
                    line.split(":")
                    for line in str(await said(node, "CLUSTER", "INFO")).split()
                    if ":" in line
                )
                known = int(told["cluster_known_nodes"]) == len(self.nodes)
                if (
                    known
                    and told["cluster_state"] == "ok"
                    and int(told["cluster_slots_assigned"]) == NUM_SLOTS
                ):
                    break
                assert time.monotonic() < give_up_at, f"the cluster was not formed: {told}"
                await asyncio.sleep(0.05)

    async def _form(self) -> None:
        for number, node in enumerate(self.primaries):
            mine = range(-(-number * NUM_SLOTS // 3), -(-(number + 1) * NUM_SLOTS // 3))
            await said(node, "CLUSTER", "ADDSLOTS", *mine)
            await said(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    await said(node, "CLUSTER", "MEET", "127.0.0.1", other.port)
        await self.up()
        for replica in self.nodes[3:]:
            await said(replica, "CLUSTER", "REPLICATE", await said(self.nodes[0], "CLUSTER", "MYID"))


async def said(node: RedisProcess, *command: Any) -> Any:
    """What one node says to one command."""
    async with redis.Redis(port=node.port, decode_responses=True, protocol=2) as client:
        return await client.execute_command(*command)


@asynccontextmanager
async def nodes_of(url: str) -> AsyncIterator[list[redis.Redis]]:
    """Clients of the server that a URL names, or of every primary of the cluster."""
    if "+cluster" not in url:
        async with redis.Redis.from_url(url) as client:
            yield [client]
        return
    ports = [int(host.rpartition(":")[2]) for host in url.partition("://")[2].split(",")]
    async with contextlib.AsyncExitStack() as stack:
        at_once = Retry(NoBackoff(), 0)  # at the first port nobody listens
        clients = [await stack.enter_async_context(redis.Redis(port=port, retry=at_once)) for port in ports]
        primaries = []
        for client in clients:
            with contextlib.suppress(RedisError):
                if (await client.info("replication"))["role"] == "master":
                    primaries.append(client)
        yield primaries


@asynccontextmanager
async def node_with(url: str, key: str) -> AsyncIterator[redis.Redis]:
    """A client of the server that holds a key."""
    async with nodes_of(url) as clients:
        for client in clients:
            try:
                await client.exists(key)
            except RedisError:  # MOVED
                continue
            break
        yield client


def _port_with_bus() -> int:
    """A free port whose neighbour for the bus is free too."""
    while True:
        port = free_port()
        if port + _BUS < 65_536:
            with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port + _BUS))
                return port
