"""A network between the service and Redis that is slow, loses bytes or cuts connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from redis import asyncio as redis

from loadtest.stress.faulty_proxy import NONE, Fault, FaultyProxy
from loadtest.stress.redis_process import RedisProcess
from service.deadline import Deadline
from service.errors import DeadlineExceededError, StoreUnavailableError
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)
OPTIONS = StoreOptions(read_timeout_ms=100, write_timeout_ms=100, breaker_cooldown_ms=100)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def proxy(server: RedisProcess) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        yield proxy


def through(proxy: FaultyProxy, options: StoreOptions = OPTIONS, entrance: str = "") -> SequenceStore:
    return SequenceStore(f"redis://{entrance}127.0.0.1:{proxy.port}/0", options)


async def up(store: SequenceStore) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            await store.ping()
            return await store.append([StoredEvent("up", "a", 1)])
        except StoreUnavailableError:
            assert time.monotonic() < give_up, "Redis did not come back"
            await asyncio.sleep(0.01)


async def reasons(store: SequenceStore, rounds: int) -> set[str]:
    """Why reads and writes fail; `answered` for one that does not."""
    seen = set()
    for _ in range(rounds):
        calls = [store.read("u", IN_TIME), store.append([StoredEvent("u", "b", 2)])]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            seen.add(result.reason if isinstance(result, StoreUnavailableError) else "answered")
        await asyncio.sleep(0.02)
    return seen


@pytest.mark.parametrize(
    ("fault", "failures"),
    [
        (Fault(delay_s=0.3), {"timeout", "breaker_open"}),
        (Fault(drop_share=1.0), {"timeout", "breaker_open"}),
        (Fault(refuse=True), {"connection", "breaker_open"}),
    ],
)
async def test_a_bad_network_fails_fast_with_few_connections_and_is_over_when_it_is_over(
    proxy: FaultyProxy, fault: Fault, failures: set[str]
) -> None:
    store = through(proxy)
    await up(store)
    await store.append([StoredEvent("u", "a", 1)])
    before = proxy.num_connections
    proxy.fault = fault
    seen = await reasons(store, 40)
    assert seen == failures
    proxy.fault = NONE
    await up(store)
    assert proxy.num_connections - before < 50
    sequence = await store.read("u", IN_TIME)
    assert sequence is not None
    assert sequence.item_ids[0] == "a"
    await store.close()


async def test_lost_bytes_and_cancellations_never_give_another_users_sequence(proxy: FaultyProxy) -> None:
    store = through(proxy, OPTIONS._replace(read_timeout_ms=30, breaker_cooldown_ms=1))
    await up(store)
    users = [f"user{n}" for n in range(30)]
    await store.append([StoredEvent(user, f"item-of-{user}", 10) for user in users])
    proxy.fault = Fault(drop_share=0.2)
    answered, failed = 0, 0
    for round_number in range(40):
        asked = {user: asyncio.create_task(store.read(user, IN_TIME)) for user in users[:10]}
        await asyncio.sleep(0.001)
        for user in users[round_number % 10 : 10 : 3]:
            asked[user].cancel()
        for user, task in asked.items():
            try:
                sequence = await task
            except (StoreUnavailableError, asyncio.CancelledError):
                failed += 1
                continue
            answered += 1
            assert sequence is not None
            assert sequence.item_ids == [f"item-of-{user}"]
    assert answered > 20
    assert failed > 20
    proxy.fault = NONE
    await up(store)
    await store.close()


async def test_a_connection_made_too_slowly_for_its_call_serves_the_next_one(
    proxy: FaultyProxy, server: RedisProcess
) -> None:
    """Else every call of a slow moment would begin a handshake and throw it away."""
    async with redis.Redis.from_url(server.url) as client:
        await client.execute_command("ACL", "SETUSER", "slow", "on", ">secret", "~*", "+@all")
    options = OPTIONS._replace(read_timeout_ms=30, breaker_threshold=1000, max_connections=4)
    store = through(proxy, options, "slow:secret@")
    proxy.fault = Fault(delay_s=0.2)
    for _ in range(10):
        with pytest.raises(StoreUnavailableError):
            await store.read("u", IN_TIME)
    proxy.fault = NONE
    await up(store)
    assert proxy.num_connections <= 4
    await store.close()


async def test_a_paused_redis_fails_fast_and_nothing_is_mixed_up_afterwards(
    proxy: FaultyProxy, server: RedisProcess
) -> None:
    store = through(proxy)
    await up(store)
    await store.append([StoredEvent("u", "a", 1)])
    async with redis.Redis.from_url(server.url) as client:
        await client.execute_command("CLIENT", "PAUSE", "700", "ALL")
    assert await reasons(store, 5) <= {"timeout", "breaker_open"}
    await up(store)
    sequence = await store.read("u", IN_TIME)
    assert sequence is not None
    assert sequence.item_ids[0] == "a"
    await store.close()


async def test_a_clock_that_is_set_back_does_not_keep_the_breaker_open(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = through(proxy, OPTIONS._replace(breaker_threshold=1))
    await up(store)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    proxy.fault = Fault(drop_share=1.0)
    assert "timeout" in await reasons(store, 1)
    assert store.breaker_state == "opened"
    monkeypatch.undo()
    proxy.fault = NONE
    await up(store)
    await store.close()


async def test_what_redis_answered_while_the_loop_was_busy_is_not_a_timeout(proxy: FaultyProxy) -> None:
    store = through(proxy, OPTIONS._replace(read_timeout_ms=25, write_timeout_ms=25))
    await up(store)
    await store.append([StoredEvent("u", "a", 1)])
    for turns in range(12):  # the loop is taken away before, while and after the command is sent
        calls = [
            asyncio.create_task(store.read("u", IN_TIME)),
            asyncio.create_task(store.append([StoredEvent("u", "a", 1)])),
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.08)
        sequence, _ = await asyncio.gather(*calls)
        assert sequence is not None
    await store.close()


async def test_a_loop_that_is_busy_at_every_turn_still_hears_redis(proxy: FaultyProxy) -> None:
    store = through(proxy, OPTIONS._replace(read_timeout_ms=25, breaker_threshold=1000))
    await up(store)
    await store.append([StoredEvent("u", "a", 1)])

    async def refuse_many() -> None:
        while True:
            time.sleep(0.06)
            await asyncio.sleep(0)

    refusing = asyncio.create_task(refuse_many())
    for _ in range(20):
        assert await store.read("u", IN_TIME) is not None
    refusing.cancel()
    await store.close()


async def test_a_busy_loop_does_not_hide_a_redis_that_does_not_answer(proxy: FaultyProxy) -> None:
    store = through(proxy, OPTIONS._replace(read_timeout_ms=25, breaker_threshold=1000))
    await up(store)
    proxy.fault = Fault(drop_share=1.0)
    for _ in range(3):
        reading = asyncio.create_task(store.read("u", IN_TIME))
        for _ in range(5):
            await asyncio.sleep(0)
        time.sleep(0.08)
        with pytest.raises(StoreUnavailableError) as failed:
            await reading
        assert failed.value.reason == "timeout"
    await store.close()


async def test_a_read_does_not_outlast_its_request(proxy: FaultyProxy) -> None:
    store = through(proxy, OPTIONS._replace(read_timeout_ms=5000, write_timeout_ms=1000))
    await up(store)
    proxy.fault = Fault(drop_share=1.0)
    patient = asyncio.create_task(store.read("u", IN_TIME))
    hurried = asyncio.create_task(store.read("u", Deadline(time.monotonic() + 0.02)))
    await asyncio.sleep(0.2)
    proxy.fault = Fault(refuse=True)
    with pytest.raises(DeadlineExceededError):
        await hurried
    with pytest.raises(StoreUnavailableError) as failed:
        await patient
    assert failed.value.reason == "connection"
    await store.close()


async def test_one_call_at_a_time_tries_whether_redis_is_back(proxy: FaultyProxy) -> None:
    store = through(proxy, OPTIONS._replace(breaker_threshold=1))
    await up(store)
    proxy.fault = Fault(drop_share=1.0)
    with pytest.raises(StoreUnavailableError):
        await store.append([StoredEvent("u", "a", 1)])
    await asyncio.sleep(0.15)  # the cooldown is over
    calls = [store.append([StoredEvent(f"u{n}", "a", 1)]) for n in range(20)]
    failed = await asyncio.gather(*calls, return_exceptions=True)
    reasons = [error.reason for error in failed if isinstance(error, StoreUnavailableError)]
    assert sorted(reasons) == ["breaker_open"] * 19 + ["timeout"]
    await store.close()
