"""A Redis that stops, dies, stays away or fills up: quick failures, few connections, quick recovery."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import asyncio as redis

from service.deadline import Deadline
from service.embedded_redis import find_redis_server
from service.errors import StoreUnavailableError
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)
OPTIONS = StoreOptions(read_timeout_ms=100, write_timeout_ms=100, breaker_cooldown_ms=200)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(tmp_path)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.wait(10)


def start(folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["--port", "0", "--unixsocket", str(folder / "s"), "--dir", str(folder), "--save", ""]
    return subprocess.Popen([find_redis_server(), *arguments], stdout=subprocess.DEVNULL)


async def up(store: SequenceStore, timeout_s: float = 20.0) -> None:
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            return await store.ping()
        except StoreUnavailableError:
            assert time.monotonic() < give_up, "Redis did not come back"
            await asyncio.sleep(0.01)


async def connections_received(folder: Path) -> int:
    client = redis.Redis.from_url(f"unix://{folder / 's'}")
    count = (await client.info("stats"))["total_connections_received"]
    await client.aclose()
    return int(count)


async def reasons_of(reads: int, store: SequenceStore) -> list[str]:
    results = await asyncio.gather(
        *(store.read(f"u{n}", IN_TIME) for n in range(reads)), return_exceptions=True
    )
    return [r.reason if isinstance(r, StoreUnavailableError) else f"{r!r}" for r in results]


async def test_a_stopped_redis_fails_fast_burns_few_connections_and_comes_back(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    states: list[tuple[str, str]] = []
    store = SequenceStore(f"unix://{tmp_path / 's'}", OPTIONS, on_state=lambda *change: states.append(change))
    await up(store)
    await store.append([StoredEvent("u1", "a", 1)])
    before = await connections_received(tmp_path)
    server.send_signal(signal.SIGSTOP)
    seen: set[str] = set()
    for _ in range(15):
        seen.update(await reasons_of(20, store))
        await asyncio.sleep(0.05)
    assert seen == {"timeout", "breaker_open"}
    assert store.breaker_state != "closed"
    server.send_signal(signal.SIGCONT)
    await up(store)
    assert store.breaker_state == "closed"
    sequence = await store.read("u1", IN_TIME)
    assert sequence is not None
    assert sequence.item_ids == ["a"]
    assert await connections_received(tmp_path) - before < 40
    assert ("read", "opened") in states
    assert states[-1] == ("read", "closed")
    await store.close()


async def test_a_dead_redis_fails_and_a_new_one_on_the_same_address_is_found(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    store = SequenceStore(f"unix://{tmp_path / 's'}", OPTIONS)
    await up(store)
    server.kill()
    server.wait(10)
    assert set(await reasons_of(5, store)) == {"connection"}
    with pytest.raises(StoreUnavailableError):
        await store.append([StoredEvent("u", "a", 1)])
    again = start(tmp_path)
    try:
        await up(store)
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up:
            with contextlib.suppress(StoreUnavailableError):
                await store.append([StoredEvent("u", "a", 1)])
                break
        assert (await store.read("u", IN_TIME)) is not None
        await store.close()
    finally:
        again.kill()
        again.wait(10)


async def test_a_redis_that_was_never_there_is_a_store_failure(tmp_path: Path) -> None:
    store = SequenceStore(f"unix://{tmp_path / 'nothing'}", OPTIONS)
    assert await reasons_of(1, store) == ["connection"]
    await store.close()


async def test_a_wrong_password_is_a_store_failure_that_names_no_key(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    plain = SequenceStore(f"unix://{tmp_path / 's'}", OPTIONS)
    await up(plain)
    client = redis.Redis.from_url(f"unix://{tmp_path / 's'}")
    await client.config_set("requirepass", "right")
    store = SequenceStore(f"unix://{tmp_path / 's'}?password=wrong", OPTIONS)
    with pytest.raises(StoreUnavailableError) as refused:
        await store.read("secret-user", IN_TIME)
    assert "secret-user" not in str(refused.value)
    assert "wrong" not in str(refused.value)
    await store.close()
    await plain.close()
    await client.aclose()


@pytest.mark.parametrize(
    ("setting", "value", "restore", "reason"),
    [("maxmemory", "1", "0", "full"), ("min-replicas-to-write", "1", "0", "no_replicas")],
)
async def test_a_redis_that_refuses_writes_says_why_and_still_serves_reads(
    server: subprocess.Popen[bytes], tmp_path: Path, setting: str, value: str, restore: str, reason: str
) -> None:
    store = SequenceStore(f"unix://{tmp_path / 's'}", OPTIONS)
    await up(store)
    await store.append([StoredEvent("u", "a", 1)])
    client = redis.Redis.from_url(f"unix://{tmp_path / 's'}")
    await client.config_set(setting, value)
    for number in range(20):
        with pytest.raises(StoreUnavailableError) as refused:
            await store.append([StoredEvent("u", "b", number + 2)])
        assert refused.value.reason == reason
        sequence = await store.read("u", IN_TIME)
        assert sequence is not None
        assert sequence.item_ids == ["a"]
    await client.config_set(setting, restore)
    await store.append([StoredEvent("u", "b", 30)])
    await client.aclose()
    await store.close()


async def crossing_server(path: Path, answer: Callable[[bytes], bytes]) -> asyncio.Server:
    """A server that answers what it is not asked: the fault itself, which no real Redis shows on demand."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while request := await reader.read(65536):
                writer.write(answer(request))
                await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, str(path))


async def test_a_reply_without_its_nonce_is_refused_even_when_it_is_empty(tmp_path: Path) -> None:
    """A left-over reply for a user without a sequence names nobody: only the nonce gives it away."""
    connections = 0

    def answer(request: bytes) -> bytes:
        nonlocal connections
        if b"ECHO" in request:
            connections += 1
            return b"$1\r\nx\r\n*1\r\n$-1\r\n"
        return b"+OK\r\n" * max(1, request.count(b"*"))

    server = await crossing_server(tmp_path / "crossing", answer)
    store = SequenceStore(f"unix://{tmp_path / 'crossing'}", OPTIONS)
    assert await reasons_of(1, store) == ["crossed"]
    assert await reasons_of(1, store) == ["crossed"]
    assert connections == 2
    await store.close()
    server.close()


async def test_timeouts_and_cancellations_leak_no_connection(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    options = OPTIONS._replace(
        read_timeout_ms=20, write_timeout_ms=20, breaker_cooldown_ms=1, max_connections=4
    )
    store = SequenceStore(f"unix://{tmp_path / 's'}", options)
    await up(store)
    for _ in range(10):
        server.send_signal(signal.SIGSTOP)
        calls = [asyncio.create_task(store.read(f"u{n}", IN_TIME)) for n in range(20)]
        calls += [asyncio.create_task(store.append([StoredEvent(f"u{n}", "a", n)])) for n in range(20)]
        await asyncio.sleep(0.03)
        for call in calls[::2]:
            call.cancel()
        server.send_signal(signal.SIGCONT)
        await asyncio.gather(*calls, return_exceptions=True)
    await up(store)
    client = redis.Redis.from_url(f"unix://{tmp_path / 's'}")
    give_up = time.monotonic() + 10
    while (await client.info("clients"))["connected_clients"] > 4 + 1:
        assert time.monotonic() < give_up, await client.client_list()
        await asyncio.sleep(0.02)
    for number in range(40):  # every slot of both pools still works
        await asyncio.sleep(0.002)
        give_up = time.monotonic() + 10
        while True:
            try:
                await store.append([StoredEvent("after", "a", number)])
                await store.read("after", IN_TIME)
                break
            except StoreUnavailableError:
                assert time.monotonic() < give_up
                await asyncio.sleep(0.01)
    await client.aclose()
    await store.close()
