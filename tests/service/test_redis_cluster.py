"""A cluster whose nodes stop, die, are replaced and hand slots to each other while they are asked."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from loadtest.stress.faulty_proxy import FaultyProxy
from loadtest.stress.redis_process import RedisProcess, free_port
from service.cluster_slots import slot_of
from service.deadline import Deadline
from service.errors import StoreUnavailableError
from service.redis_connections import TlsFiles
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions
from tests.certificates import Authority
from tests.documents import DOCUMENTS
from tests.redis_cluster import ClusterProcesses, said

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)
PATIENT = StoreOptions(read_timeout_ms=5000, write_timeout_ms=5000)
HURRIED = StoreOptions(read_timeout_ms=250, write_timeout_ms=500, breaker_cooldown_ms=100)
CLUSTER_ACL = (
    re.findall(r"^ACL SETUSER (.+)$", DOCUMENTS, re.MULTILINE)[1].replace("PASSWORD", "secret").split()
)
OUTAGES = {"timeout", "connection", "breaker_open"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with ClusterProcesses(tmp_path_factory.mktemp("cluster"), num_replicas=1) as cluster:
        yield cluster


async def items(store: SequenceStore, user_id: str) -> list[str]:
    sequence = await store.read(user_id, IN_TIME)
    return [] if sequence is None else sequence.item_ids


async def reason(store: SequenceStore, user_id: str) -> str:
    """Why a read fails; `answered` if it does not."""
    try:
        await store.read(user_id, IN_TIME)
    except StoreUnavailableError as error:
        return error.reason
    return "answered"


async def appended(store: SequenceStore, event: StoredEvent) -> None:
    """An event that is sent until it is taken, as a caller of /events does."""
    give_up_at = time.monotonic() + 20
    while True:
        try:
            return await store.append([event])
        except StoreUnavailableError:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)


async def answered_again(store: SequenceStore, user_id: str) -> list[str]:
    give_up_at = time.monotonic() + 20
    while True:
        with contextlib.suppress(StoreUnavailableError):
            return await items(store, user_id)
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.02)


async def test_slots_are_those_of_the_server(cluster: ClusterProcesses) -> None:
    keys = ["t2diff:seq1:u", "{a}b", "a{b}c", "a{}b", "a{b", "a}b{c", "{{x}}", "a{b}{c}", "日本語", "x" * 200]
    for key in keys:
        assert slot_of(key) == await said(cluster.nodes[0], "CLUSTER", "KEYSLOT", key), key


async def test_a_node_that_does_not_answer_holds_up_nobody_elses_users(cluster: ClusterProcesses) -> None:
    store = SequenceStore(cluster.url, PATIENT)
    users = [cluster.key_of(number, "silent") for number in range(3)]
    await store.append([StoredEvent(user, f"of-{user}", 1) for user in users])
    cluster.nodes[1].stop()
    try:
        waiting = [asyncio.create_task(store.read(users[1], IN_TIME)) for _ in range(200)]
        await asyncio.sleep(0)
        for _ in range(20):
            assert await items(store, users[0]) == [f"of-{users[0]}"]
            assert await items(store, users[2]) == [f"of-{users[2]}"]
        assert not any(task.done() for task in waiting)
    finally:
        cluster.nodes[1].go_on()
    found = await asyncio.gather(*waiting)
    assert all(each is not None and each.item_ids == [f"of-{users[1]}"] for each in found)
    await store.close()


async def test_a_stopped_node_costs_its_users_alone_and_few_connections_and_comes_back(
    cluster: ClusterProcesses,
) -> None:
    states: list[str] = []
    store = SequenceStore(cluster.url, HURRIED, on_state=lambda operation, state: states.append(state))
    users = [cluster.key_of(number, "stopped") for number in range(3)]
    for user in users:
        await appended(store, StoredEvent(user, "a", 1))
        assert await answered_again(store, user) == ["a"]
    before = await connections_received(cluster.nodes[1])
    cluster.nodes[1].stop()
    seen: dict[str, set[str]] = {user: set() for user in users}
    for _ in range(15):
        for user, why in zip(
            users * 5, await asyncio.gather(*(reason(store, u) for u in users * 5)), strict=True
        ):
            seen[user].add(why)
        await asyncio.sleep(0.02)
    assert seen[users[0]] == seen[users[2]] == {"answered"}
    assert seen[users[1]] == {"timeout", "breaker_open"}
    assert store.breaker_state != "closed"
    with pytest.raises(StoreUnavailableError):
        await store.append([StoredEvent(user, "b", 2) for user in users])
    assert await items(store, users[0]) == ["a", "b"]  # of a call that failed, what could be stored is
    fresh = SequenceStore(cluster.url, HURRIED._replace(read_timeout_ms=700))  # it knows no places yet
    together = await asyncio.gather(*(reason(fresh, user) for user in users))
    assert (together[0], together[1] in OUTAGES, together[2]) == ("answered", True, "answered")
    await fresh.close()
    cluster.nodes[1].go_on()
    assert (await answered_again(store, users[1]))[0] == "a"
    assert store.breaker_state == "closed"
    assert "opened" in states
    assert await connections_received(cluster.nodes[1]) - before < 40
    await store.close()


async def test_a_lost_node_costs_its_users_alone_until_its_replica_takes_over(
    cluster: ClusterProcesses,
) -> None:
    store = SequenceStore(cluster.url, HURRIED)
    users = [cluster.key_of(number, "lost") for number in range(3)]
    for user in users:
        await appended(store, StoredEvent(user, "before", 1))
        assert await answered_again(store, user) == ["before"]
    await cluster.replicated()
    lost = cluster.nodes[0]
    lost.kill()
    for _ in range(10):
        why = [await reason(store, user) for user in users]
        assert why[0] in OUTAGES
        assert why[1:] == ["answered", "answered"]
    await cluster.take_over()
    assert await answered_again(store, users[0]) == ["before"]
    await appended(store, StoredEvent(users[0], "after", 2))
    assert await answered_again(store, users[0]) == ["before", "after"]
    await store.close()
    lost.start()
    await cluster.up()


async def connections_received(node: RedisProcess) -> int:
    info = await said(node, "INFO", "stats")
    return int(info["total_connections_received"])


async def redirections(cluster: ClusterProcesses) -> int:
    """How often the nodes sent somebody elsewhere."""
    counts = [await said(node, "INFO", "errorstats") for node in cluster.nodes]
    return sum(
        told[f"errorstat_{kind}"]["count"]
        for told in counts
        for kind in ("MOVED", "ASK")
        if f"errorstat_{kind}" in told
    )


async def test_a_slot_that_moves_under_reads_and_writes_fails_none_and_loses_nothing(
    cluster: ClusterProcesses,
) -> None:
    store = SequenceStore(cluster.url, PATIENT._replace(max_length=10_000))
    user = cluster.key_of(1, "wanderer")
    key = f"t2diff:seq1:{user}"
    await store.append([StoredEvent(user, "i0", 0)])
    moving = True
    num_reads = 0

    async def read() -> None:
        nonlocal num_reads
        while moving:
            assert (await items(store, user))[0] == "i0"
            num_reads += 1

    async def write() -> int:
        number = 0
        while moving:
            number += 1
            await store.append([StoredEvent(user, f"i{number}", number)])
        return number

    readers = [asyncio.create_task(read()) for _ in range(4)]
    writer = asyncio.create_task(write())
    for step in (cluster.open_slot, cluster.move_keys, cluster.close_slot):
        await asyncio.sleep(0.05)
        await step(key, 2)
    await asyncio.sleep(0.05)
    moving = False
    await asyncio.gather(*readers)
    last = await writer
    assert num_reads > 20
    assert (await items(store, user))[-1] == f"i{last}"
    assert await said(cluster.nodes[2], "EXISTS", key) == 1
    before = await redirections(cluster)
    for _ in range(20):
        await items(store, user)
    assert await redirections(cluster) == before, "the store knows where the slot is now"
    await store.close()


async def test_in_a_slot_that_is_half_way_both_halves_are_read_and_written(cluster: ClusterProcesses) -> None:
    store = SequenceStore(cluster.url, PATIENT)
    here, there, nowhere = (f"{{half-way}}{name}" for name in ("here", "there", "nowhere"))
    key = f"t2diff:seq1:{here}"
    to = 0 if cluster.holder(key) is not cluster.nodes[0] else 1
    await store.append([StoredEvent(user, "a", 1) for user in (here, there)])
    await cluster.open_slot(key, to)
    await said(
        cluster.holder(key), "MIGRATE", "127.0.0.1", cluster.nodes[to].port, f"t2diff:seq1:{there}", 0, 5000
    )
    for user in (here, there):
        assert await items(store, user) == ["a"]
        await store.append([StoredEvent(user, "b", 2)])
        assert await items(store, user) == ["a", "b"]
    assert await items(store, nowhere) == []
    users = (here, there) * 10
    assert await asyncio.gather(*(items(store, user) for user in users)) == [["a", "b"]] * 20
    await store.append([StoredEvent(nowhere, "new", 1)])
    await cluster.move_keys(key, to)
    await cluster.close_slot(key, to)
    assert [await items(store, user) for user in (here, there, nowhere)] == [["a", "b"], ["a", "b"], ["new"]]
    await store.close()


async def test_a_server_that_is_no_cluster_and_a_cluster_that_is_named_as_a_server_are_told(
    cluster: ClusterProcesses, redis_on_a_port: str
) -> None:
    address = redis_on_a_port.removeprefix("redis://").removesuffix("/0")
    store = SequenceStore(f"redis+cluster://{address}", PATIENT)
    with pytest.raises(StoreUnavailableError, match="redis://") as failed:
        await store.read("u", IN_TIME)
    assert failed.value.reason == "no_cluster"
    await store.close()
    store = SequenceStore(f"redis://127.0.0.1:{cluster.nodes[0].port}", PATIENT)
    with pytest.raises(StoreUnavailableError, match=r"redis\+cluster://") as failed:
        await store.read(cluster.key_of(1), IN_TIME)
    assert failed.value.reason == "cluster"
    await store.close()


async def test_without_a_node_in_reach_every_read_fails_and_a_cluster_that_comes_is_found() -> None:
    nobody = f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    store = SequenceStore(nobody, HURRIED)
    assert {await reason(store, f"u{number}") for number in range(5)} <= OUTAGES
    with pytest.raises(StoreUnavailableError):
        await store.append([StoredEvent("u", "a", 1)])
    with pytest.raises(StoreUnavailableError):
        await store.ping()
    await store.close()


async def test_a_slot_that_nobody_has_is_the_fallback_for_its_users_alone(cluster: ClusterProcesses) -> None:
    store = SequenceStore(cluster.url, HURRIED)
    user, other = cluster.key_of(1, "uncovered"), cluster.key_of(2)
    slot = slot_of(f"t2diff:seq1:{user}")
    await said(cluster.nodes[1], "CLUSTER", "DELSLOTS", slot)
    assert await reason(store, user) == "cluster_down"
    assert await reason(store, other) == "answered"
    await said(cluster.nodes[1], "CLUSTER", "ADDSLOTS", slot)
    assert await answered_again(store, user) == []
    await store.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


async def allow(cluster: ClusterProcesses, acl: list[str]) -> None:
    for node in cluster.nodes:
        await said(node, "ACL", "DELUSER", "recall")
        await said(node, "ACL", "SETUSER", *acl)


async def test_by_tls_with_the_acl_of_the_documents(tmp_path: Path, authority: Authority) -> None:
    """The embedded binary has no TLS, so each node announces a proxy that ends it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    context.load_cert_chain(*authority.issue("server"))
    context.verify_mode = ssl.CERT_REQUIRED
    files = TlsFiles(str(authority.certificate), *map(str, authority.issue("client")))
    proxies: list[int] = []
    with ExitStack() as stack:

        def announced(port: int) -> int:
            proxies.append(stack.enter_context(FaultyProxy(port, tls=context)).port)
            return proxies[-1]

        cluster = stack.enter_context(ClusterProcesses(tmp_path, announced=announced))
        await allow(cluster, CLUSTER_ACL)
        url = f"rediss+cluster://recall:secret@127.0.0.1:{proxies[1]}"
        await use_by_tls(cluster, url, files)


async def use_by_tls(cluster: ClusterProcesses, url: str, files: TlsFiles) -> None:
    store = SequenceStore(url, PATIENT._replace(tls=files))
    users = [cluster.key_of(number, "tls") for number in range(3)]
    await store.ping()
    await store.append([StoredEvent(user, "a", 1) for user in users])
    assert [await items(store, user) for user in users] == [["a"]] * 3
    key = f"t2diff:seq1:{users[0]}"
    for step in (cluster.open_slot, cluster.move_keys, cluster.close_slot):
        await step(key, 1)
        await store.append([StoredEvent(users[0], step.__name__, 2)])
    assert await items(store, users[0]) == ["a", "open_slot", "move_keys", "close_slot"]
    await store.close()
    stranger = SequenceStore(url.replace("secret", "wrong-one"), PATIENT._replace(tls=files))
    with pytest.raises(StoreUnavailableError, match="user or password") as refused:
        await stranger.read("u", IN_TIME)
    assert "wrong-one" not in str(refused.value)
    assert refused.value.reason == "password"
    await stranger.close()
    unknown = SequenceStore(url, PATIENT._replace(tls=TlsFiles(files.ca)))
    assert await reason(unknown, "u") in ("tls", "connection")
    await unknown.close()


@pytest.mark.parametrize("missing", ["+cluster|slots", "+asking", "+evalsha"])
async def test_an_acl_without_what_a_cluster_needs_is_named(cluster: ClusterProcesses, missing: str) -> None:
    await allow(cluster, [word for word in CLUSTER_ACL if word != missing])
    store = SequenceStore(f"redis+cluster://recall:secret@127.0.0.1:{cluster.nodes[0].port}", PATIENT)
    user = cluster.key_of(0, missing)
    key = f"t2diff:seq1:{user}"
    await cluster.open_slot(key, 1)  # an absent key is asked for at the other node
    assert await reason(store, user) == "no_permission"
    await cluster.close_slot(key, 1)
    await store.close()
