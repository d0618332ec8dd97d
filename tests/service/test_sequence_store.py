"""The store against real redis-servers: embedded, one's own, and a cluster."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from service.deadline import Deadline
from service.errors import StoreUnavailableError
from service.packed_sequence import StoredSequence
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions
from tests.redis_cluster import node_with, nodes_of

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)


def events(user_id: str, *pairs: tuple[str, int]) -> list[StoredEvent]:
    return [StoredEvent(user_id, item_id, timestamp) for item_id, timestamp in pairs]


async def stored(store: SequenceStore, user_id: str) -> list[tuple[str, int]] | None:
    sequence = await store.read(user_id, IN_TIME)
    return None if sequence is None else list(zip(sequence.item_ids, sequence.timestamps, strict=True))


async def kill_connections(redis_url: str) -> int:
    """Have the server close every connection but this one; how many there were."""
    async with nodes_of(redis_url) as clients:
        kill = ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return sum([await client.execute_command(*kill) for client in clients])


async def test_a_user_without_events_has_no_sequence(store: SequenceStore) -> None:
    assert await store.read("nobody", IN_TIME) is None


async def test_appended_events_are_read_back_in_order_of_time_then_arrival(store: SequenceStore) -> None:
    await store.append(events("u", ("b", 20), ("a", 10)))
    await store.append(events("u", ("c", 20), ("z", 5)))
    assert await stored(store, "u") == [("z", 5), ("a", 10), ("b", 20), ("c", 20)]


async def test_connections_that_the_server_closed_meanwhile_fail_nobody(
    store: SequenceStore, redis_url: str
) -> None:
    await store.append(events("u", ("a", 10)))
    assert await stored(store, "u") == [("a", 10)]
    assert await kill_connections(redis_url) >= 2
    await asyncio.sleep(0.1)  # until the news is here
    assert await stored(store, "u") == [("a", 10)]
    await store.append(events("u", ("b", 20)))
    assert await stored(store, "u") == [("a", 10), ("b", 20)]


async def test_connections_that_the_server_closes_again_and_again_do_not_use_up_the_pool(
    store: SequenceStore, redis_url: str
) -> None:
    await store.append(events("u", ("a", 10)))
    for _ in range(StoreOptions().max_connections + 1):
        assert await stored(store, "u") == [("a", 10)]
        await store.append(events("u", ("a", 10)))
        await kill_connections(redis_url)
        await asyncio.sleep(0.1)  # until the news is here
    assert await stored(store, "u") == [("a", 10)]


async def test_only_the_newest_behaviours_are_kept(store: SequenceStore) -> None:
    await store.append(events("u", *[(f"i{n}", n) for n in range(1, 9)]))
    assert await stored(store, "u") == [(f"i{n}", n) for n in range(4, 9)]
    await store.append(events("u", ("too-old", 1)))
    assert await stored(store, "u") == [(f"i{n}", n) for n in range(4, 9)]


async def test_repeating_a_call_changes_nothing(store: SequenceStore) -> None:
    for _ in range(3):
        await store.append(events("u", ("a", 10), ("b", 10), ("a", 11)))
    assert await stored(store, "u") == [("a", 10), ("b", 10), ("a", 11)]


async def test_many_unordered_repeated_events_of_one_call_are_kept_as_if_sent_one_by_one(
    store: SequenceStore,
) -> None:
    choice = random.Random(0)
    pool = events("u", *[(f"i{choice.randint(1, 5)}", choice.randint(1, 6)) for _ in range(60)])
    for event in pool:
        await store.append([event._replace(user_id="one-by-one")])
    await store.append(pool)
    assert await stored(store, "u") == await stored(store, "one-by-one")


async def test_odd_identifiers_survive(store: SequenceStore) -> None:
    odd = ["café 🎬", "a,b:c;d", "%s {} \\n", "日本語", "'\"`", "-1", "x" * 128]
    for user_id in odd:
        await store.append(events(user_id, *[(item, 10 + n) for n, item in enumerate(odd[-5:])]))
    for user_id in odd:
        assert await stored(store, user_id) == [(item, 10 + n) for n, item in enumerate(odd[-5:])]


async def test_one_call_stores_events_of_many_users(store: SequenceStore) -> None:
    users = [f"user{n}" for n in range(100)]
    await store.append([StoredEvent(user, f"{user}-{k}", k) for k in range(3) for user in users])
    sequences = await asyncio.gather(*(stored(store, user) for user in users))
    assert sequences == [[(f"{user}-{k}", k) for k in range(3)] for user in users]


async def test_concurrent_appends_lose_nothing(redis_url: str) -> None:
    store = SequenceStore(
        redis_url, StoreOptions(namespace="concurrent", write_timeout_ms=10_000, read_timeout_ms=5000)
    )
    order = list(range(1, 101))
    random.Random(0).shuffle(order)
    await asyncio.gather(*(store.append(events("u", (f"i{n}", n))) for n in order))
    assert await stored(store, "u") == [(f"i{n}", n) for n in range(1, 101)]
    await store.close()


async def test_a_sequence_expires(redis_url: str) -> None:
    store = SequenceStore(redis_url, StoreOptions(namespace="expiring", ttl_s=1234, read_timeout_ms=2000))
    await store.append(events("u", ("a", 10)))
    async with nodes_of(redis_url) as clients:
        found = [(client, key) for client in clients async for key in client.scan_iter("expiring:*")]
        assert len(found) == 1
        client, key = found[0]
        assert 1200 < await client.ttl(key) <= 1234
    await store.close()


HOSTILE: list[Any] = [
    b"somebody-else\n10\na\n",
    b"u\n10\na",
    b"u\n10\n",
    b"u\nten\na\n",
    b"u\n-5\na\n",
    b"u\n99999999999999999999\na\n",
    b"u",
    b"",
    b"\xff\xfe\x00",
    b"u\n" + b"9" * 5000 + b"\na\n",
    b"u\n" + b"1\na\n" * 10_001,
]


@pytest.mark.parametrize("value", HOSTILE)
async def test_a_value_that_is_not_this_users_fails_that_read_alone_and_is_healed(
    redis_url: str, value: bytes
) -> None:
    store = SequenceStore(redis_url, StoreOptions(namespace="hostile", read_timeout_ms=2000))
    await store.append(events("good", ("a", 10)))
    async with node_with(redis_url, "hostile:seq1:u") as client:
        await client.set("hostile:seq1:u", value)
    users = ("good", "u", "nobody")
    reads = await asyncio.gather(*(store.read(user, IN_TIME) for user in users), return_exceptions=True)
    assert reads[0] == StoredSequence(["a"], [10])
    assert isinstance(reads[1], StoreUnavailableError)
    assert reads[1].reason == "crossed"
    assert reads[2] is None
    await store.append(events("u", ("b", 20)))
    healed = await stored(store, "u")
    assert healed is not None
    assert healed[-1] == ("b", 20)
    async with node_with(redis_url, "hostile:seq1:u") as client:
        await client.delete("hostile:seq1:u")
    await store.close()


async def test_a_key_of_another_type_is_no_sequence_and_is_replaced(redis_url: str) -> None:
    store = SequenceStore(redis_url, StoreOptions(namespace="typed", read_timeout_ms=2000))
    async with node_with(redis_url, "typed:seq1:u") as client:
        await client.rpush("typed:seq1:u", "a", "b")
    assert await store.read("u", IN_TIME) is None
    await store.append(events("u", ("c", 1)))
    assert await stored(store, "u") == [("c", 1)]
    await store.close()


async def test_cancelled_reads_never_give_another_users_sequence(store: SequenceStore) -> None:
    users = [f"user{n}" for n in range(50)]
    await store.append([StoredEvent(user, f"item-of-{user}", 10) for user in users])
    choice = random.Random(1)
    wrong, answered, cancelled = [], 0, 0

    async def read(user: str) -> None:
        nonlocal answered
        sequence = await store.read(user, IN_TIME)
        answered += 1
        if sequence is None or sequence.item_ids != [f"item-of-{user}"]:
            wrong.append((user, sequence))

    async def cancel_soon(task: asyncio.Task[None]) -> None:
        for _ in range(choice.randint(0, 6)):
            await asyncio.sleep(0)
        task.cancel()

    for _ in range(60):
        tasks = [asyncio.create_task(read(choice.choice(users))) for _ in range(20)]
        await asyncio.gather(*(cancel_soon(task) for task in tasks if choice.random() < 0.5))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled += sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert wrong == []
    assert answered > 300
    assert cancelled > 50


async def test_a_cancelled_append_is_still_stored(store: SequenceStore) -> None:
    task = asyncio.create_task(store.append(events("u", ("a", 10))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.close()
    assert await stored(store, "u") == [("a", 10)]


async def test_a_huge_value_fails_its_user_alone_and_is_replaced_by_the_next_event(redis_url: str) -> None:
    """64 MB is more than comes within the time of a read: by size, not by its timeout, it must be refused."""
    options = StoreOptions(namespace="huge", read_timeout_ms=2000, write_timeout_ms=5000, breaker_threshold=1)
    store = SequenceStore(redis_url, options)
    async with node_with(redis_url, "huge:seq1:u") as client:
        await client.set("huge:seq1:u", "u\n1\na\n")
        await client.setrange("huge:seq1:u", 64 * 2**20, "\n")
        await store.append(events("good", ("a", 10)))
        before = (await client.info("stats"))["total_net_output_bytes"]
        for _ in range(20):
            reads = await asyncio.gather(
                *(store.read(user, IN_TIME) for user in ("good", "u", "nobody")), return_exceptions=True
            )
            assert reads[0] == StoredSequence(["a"], [10])
            assert isinstance(reads[1], StoreUnavailableError)
            assert reads[1].reason == "crossed"
            assert reads[2] is None
        assert (await client.info("stats"))["total_net_output_bytes"] - before < 2**20
        await store.append(events("u", ("b", 20)))
        assert await stored(store, "u") == [("b", 20)]
    await store.close()


async def test_the_longest_sequence_that_can_be_stored_is_read_back(redis_url: str) -> None:
    options = StoreOptions(
        namespace="long", read_timeout_ms=10_000, write_timeout_ms=60_000, max_length=10_000
    )
    store = SequenceStore(redis_url, options)
    user_id, widest = "\U0001f3ac" * 128, "\U0001f3ac" * 122
    async with node_with(redis_url, f"long:seq1:{user_id}") as client:
        lines = [user_id, *(f"{9_000_000_000_000_000 + n}\n{widest}{n:06d}" for n in range(9_999)), ""]
        await client.set(f"long:seq1:{user_id}", "\n".join(lines))
    await store.append([StoredEvent(user_id, "last", 2**53 - 1)])
    sequence = await store.read(user_id, IN_TIME)
    assert sequence is not None
    assert len(sequence.item_ids) == 10_000
    assert sequence.item_ids[-1] == "last"
    await store.close()
