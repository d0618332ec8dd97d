"""The short-lived cache: bounded, forgetful, and never older than what this process stored."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from loadtest.stress.faulty_proxy import NONE, Fault, FaultyProxy
from loadtest.stress.redis_process import RedisProcess
from service.deadline import Deadline
from service.packed_sequence import StoredSequence
from service.sequence_cache import SequenceCache
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions

IN_TIME = Deadline(time.monotonic() + 3600)
ONE = StoredSequence(["a"], [1])


def kept(cache: SequenceCache, user_id: str) -> StoredSequence | None:
    with cache.reading(user_id) as reading:
        assert reading.found, f"{user_id} is not kept"
        return reading.sequence


def is_kept(cache: SequenceCache, user_id: str) -> bool:
    with cache.reading(user_id) as reading:
        return reading.found


def keep(cache: SequenceCache, user_id: str, sequence: StoredSequence | None) -> None:
    with cache.reading(user_id) as reading:
        reading.keep(sequence)


def test_what_was_read_is_kept_until_it_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SequenceCache(10.0)
    keep(cache, "u", ONE)
    keep(cache, "nobody", None)
    assert kept(cache, "u") == ONE
    assert kept(cache, "nobody") is None
    later = time.monotonic() + 10.1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not is_kept(cache, "u")
    assert not is_kept(cache, "nobody")
    assert cache._num_behaviours == 0


def test_the_oldest_leave_when_there_are_too_many_behaviours() -> None:
    cache = SequenceCache(10.0, max_behaviours=40)
    for number in range(1000):
        keep(cache, f"u{number}", StoredSequence(["a"] * 9, [1] * 9))
    assert [number for number in range(1000) if is_kept(cache, f"u{number}")] == [996, 997, 998, 999]
    keep(cache, "huge", StoredSequence(["a"] * 50, [1] * 50))
    assert not is_kept(cache, "huge")
    assert not is_kept(cache, "u999")
    assert cache._num_behaviours == 0


def test_a_read_that_began_before_an_event_is_not_kept() -> None:
    cache = SequenceCache(10.0)
    with cache.reading("u") as early, cache.reading("other") as other:
        cache.forget({"u"})
        with cache.reading("u") as late:
            late.keep(ONE)
            early.keep(None)
        early.keep(None)
        other.keep(ONE)
    assert kept(cache, "u") == ONE
    assert kept(cache, "other") == ONE


def test_reads_that_failed_leave_nothing_behind() -> None:
    cache = SequenceCache(10.0)
    with pytest.raises(TimeoutError), cache.reading("u"):
        raise TimeoutError
    assert not is_kept(cache, "u")
    assert cache._under_way == {}


@pytest.mark.anyio
async def test_with_the_cache_a_user_sees_every_event_that_this_process_took(redis_url: str) -> None:
    options = StoreOptions(namespace="cached", read_timeout_ms=2000, write_timeout_ms=5000, cache_ms=60_000)
    store = SequenceStore(redis_url, options)
    other = SequenceStore(redis_url, options._replace(cache_ms=0))
    for number in range(1, 20):
        reads = [asyncio.create_task(store.read("u", IN_TIME)) for _ in range(4)]
        await store.append([StoredEvent("u", f"i{number}", number)])
        await asyncio.gather(*reads)
        sequence = await store.read("u", IN_TIME)
        assert sequence is not None
        assert sequence.item_ids == [f"i{n}" for n in range(1, number + 1)]
    await other.append([StoredEvent("u", "elsewhere", 99)])
    sequence = await store.read("u", IN_TIME)
    assert sequence is not None
    assert sequence.item_ids[-1] == "i19", "what another replica stored is seen only after the cache's age"
    await store.close()
    await other.close()


@pytest.mark.anyio
async def test_a_read_between_the_call_and_the_storing_of_an_event_is_not_kept_either(tmp_path: Path) -> None:
    options = StoreOptions(read_timeout_ms=2000, write_timeout_ms=5000, cache_ms=60_000)
    entrance = ["--user", "slow", "on", ">secret", "~*", "+@all"]
    with RedisProcess(tmp_path, *entrance) as server, FaultyProxy(server.port) as proxy:
        store = SequenceStore(f"redis://slow:secret@127.0.0.1:{proxy.port}/0", options)
        await store.ping()  # connects for reads only
        proxy.fault = Fault(delay_s=0.3)
        appending = asyncio.create_task(store.append([StoredEvent("u", "a", 1)]))
        await asyncio.sleep(0.1)  # it waits for its password to be accepted
        proxy.fault = NONE
        assert await store.read("u", IN_TIME) is None
        assert not appending.done()
        await appending
        assert await store.read("u", IN_TIME) == ONE
        await store.close()


@pytest.mark.anyio
async def test_without_the_setting_every_read_asks_redis(redis_url: str) -> None:
    options = StoreOptions(namespace="uncached", read_timeout_ms=2000, write_timeout_ms=5000)
    store, other = SequenceStore(redis_url, options), SequenceStore(redis_url, options)
    for number in range(1, 4):
        await other.append([StoredEvent("u", f"i{number}", number)])
        sequence = await store.read("u", IN_TIME)
        assert sequence is not None
        assert sequence.item_ids[-1] == f"i{number}"
    await store.close()
    await other.close()
