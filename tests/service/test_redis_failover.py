"""A primary that dies, is demoted or fills up, with real replicas and a real sentinel."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import asyncio as redis

from loadtest.stress.redis_process import RedisProcess, free_port
from service.deadline import Deadline
from service.errors import StoreUnavailableError
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)
OPTIONS = StoreOptions(read_timeout_ms=200, write_timeout_ms=500, breaker_cooldown_ms=100)
SENTINEL = """
port PORT
bind 127.0.0.1
dir {folder}
sentinel monitor recall 127.0.0.1 {primary} 1
sentinel down-after-milliseconds recall 400
sentinel failover-timeout recall 5000
sentinel auth-user recall watcher
sentinel auth-pass recall secret
"""
WATCHER = ["--user", "watcher", "on", ">secret", "~*", "&*", "+@all"]


class Watched(NamedTuple):
    primary: RedisProcess
    replica: RedisProcess
    sentinel: RedisProcess

    @property
    def url(self) -> str:
        """Nobody listens at the first of the two sentinels."""
        return (
            f"redis+sentinel://watcher:secret@127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/recall"
        )


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        enter = stack.enter_context
        primary = enter(RedisProcess(tmp_path / "primary", *WATCHER))
        follow = ["--replicaof", "127.0.0.1", str(primary.port), "--masteruser", "watcher"]
        replica = enter(RedisProcess(tmp_path / "replica", *WATCHER, *follow, "--masterauth", "secret"))
        asyncio.run(until_linked(replica))
        folder = tmp_path / "sentinel"
        config = SENTINEL.format(folder=folder, primary=primary.port)
        sentinel = enter(RedisProcess(folder, "--sentinel", config=config))
        asyncio.run(until_known(sentinel))
        yield Watched(primary, replica, sentinel)


async def until_linked(replica: RedisProcess) -> None:
    give_up = time.monotonic() + 30
    async with redis.Redis.from_url(replica.url) as client:
        while (await client.info("replication"))["master_link_status"] != "up":
            assert time.monotonic() < give_up, "the replica does not follow"
            await asyncio.sleep(0.05)


async def until_known(sentinel: RedisProcess) -> None:
    give_up = time.monotonic() + 30
    async with redis.Redis.from_url(f"redis://127.0.0.1:{sentinel.port}") as client:
        while True:
            known = await client.sentinel_slaves("recall")
            if known and known[0]["flags"] == "slave" and known[0]["master-link-status"] == "ok":
                return
            assert time.monotonic() < give_up, f"the sentinel does not know the replica: {known}"
            await asyncio.sleep(0.05)


async def until_role(server: RedisProcess, role: str) -> None:
    give_up = time.monotonic() + 60
    while True:
        async with redis.Redis.from_url(server.url) as client:
            with contextlib.suppress(redis.ConnectionError):  # a change of role cuts connections
                if (await client.info("replication"))["role"] == role:
                    return
        assert time.monotonic() < give_up, f"the server on port {server.port} did not become {role}"
        await asyncio.sleep(0.05)


async def appended(store: SequenceStore, event: StoredEvent) -> set[str]:
    """Append until it is stored; why it was not before."""
    give_up = time.monotonic() + 60
    reasons = set()
    while True:
        try:
            await store.append([event])
            return reasons
        except StoreUnavailableError as error:
            reasons.add(error.reason)
            assert time.monotonic() < give_up, f"no primary was found again: {reasons}"
            await asyncio.sleep(0.02)


async def items(store: SequenceStore, user_id: str) -> list[str]:
    give_up = time.monotonic() + 20
    while True:
        try:
            sequence = await store.read(user_id, IN_TIME)
            return [] if sequence is None else sequence.item_ids
        except StoreUnavailableError:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("fate", ["killed", "demoted"])
async def test_the_sentinels_lead_to_the_new_primary(watched: Watched, fate: str) -> None:
    store = SequenceStore(watched.url, OPTIONS)
    await appended(store, StoredEvent("u", "before", 1))
    async with redis.Redis.from_url(watched.primary.url) as client:
        assert await client.wait(1, 5000) == 1
    if fate == "killed":
        watched.primary.kill()
    else:
        async with redis.Redis.from_url(f"redis://127.0.0.1:{watched.sentinel.port}") as client:
            await client.execute_command("SENTINEL", "FAILOVER", "recall")
        await until_role(watched.replica, "master")
        async with redis.Redis.from_url(watched.primary.url) as client:  # as the sentinel does after 10 s
            await client.replicaof("127.0.0.1", watched.replica.port)
        await until_linked(watched.primary)
    await until_role(watched.replica, "master")
    await appended(store, StoredEvent("u", "after", 2))
    give_up = time.monotonic() + 20
    while await items(store, "u") != ["before", "after"]:  # a read connection may still be the old primary's
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    async with redis.Redis.from_url(watched.replica.url) as client:
        assert b"after" in await client.get("t2diff:seq1:u")
    await store.close()


async def test_without_a_sentinel_in_reach_the_store_is_unreachable(tmp_path: Path) -> None:
    store = SequenceStore(f"redis+sentinel://127.0.0.1:{free_port()}/recall", OPTIONS)
    with pytest.raises(StoreUnavailableError) as failed:
        await store.read("u", IN_TIME)
    assert failed.value.reason == "connection"
    await store.close()


async def test_a_replica_serves_reads_refuses_writes_and_is_left_once_it_is_promoted(tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "redis") as server:
        store = SequenceStore(server.url, OPTIONS)
        await appended(store, StoredEvent("u", "a", 1))
        async with redis.Redis.from_url(server.url) as client:
            await client.replicaof("127.0.0.1", free_port())
            for _ in range(8):
                with pytest.raises(StoreUnavailableError, match="replica") as refused:
                    await store.append([StoredEvent("u", "b", 2)])
                assert refused.value.reason == "read_only"
                assert await items(store, "u") == ["a"]
            await client.replicaof("NO", "ONE")
        await store.append([StoredEvent("u", "b", 2)])
        assert await items(store, "u") == ["a", "b"]
        await store.close()
