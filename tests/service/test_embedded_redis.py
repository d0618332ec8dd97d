"""The embedded redis-server: what it keeps, what it survives, what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.deadline import Deadline
from service.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)
OPTIONS = StoreOptions(read_timeout_ms=2000, write_timeout_ms=5000, breaker_cooldown_ms=50)


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        async with EmbeddedRedis(tmp_path) as embedded:
            store = SequenceStore(embedded.url, OPTIONS)
            await store.append([StoredEvent("u", f"i{number}", number)])
            sequence = await store.read("u", IN_TIME)
            await store.close()
            assert sequence is not None
            assert sequence.item_ids == [f"i{n}" for n in range(number + 1)]
        assert not embedded.socket_path.exists()


async def test_a_killed_server_is_started_again_and_lost_nothing_acknowledged(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as embedded:
        store = SequenceStore(embedded.url, OPTIONS)
        for number in range(20):
            await store.append([StoredEvent("u", f"i{number}", number)])
        killed = embedded.pid
        os.kill(killed, signal.SIGKILL)
        give_up = time.monotonic() + 20
        while True:
            try:
                sequence = await store.read("u", IN_TIME)
                break
            except Exception:
                assert time.monotonic() < give_up, "the server did not come back"
                await asyncio.sleep(0.02)
        assert embedded.pid != killed
        assert sequence is not None
        assert sequence.item_ids == [f"i{n}" for n in range(20)]
        await store.close()


async def test_one_state_folder_serves_one_service(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path):
        with pytest.raises(EmbeddedRedisError, match="another service uses"):
            async with EmbeddedRedis(tmp_path):
                pass


async def test_the_server_of_a_killed_service_is_stopped_and_its_data_kept(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from service.embedded_redis import EmbeddedRedis
from service.sequence_store import SequenceStore, StoredEvent
async def main():
    async with EmbeddedRedis(Path({str(tmp_path)!r})) as embedded:
        store = SequenceStore(embedded.url)
        await store.append([StoredEvent("u", "a", 1)])
        print(embedded.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    service = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    leftover = int(service.stdout.readline())
    service.kill()
    service.wait(10)
    os.kill(leftover, 0)  # it is still there
    async with EmbeddedRedis(tmp_path) as embedded:
        assert embedded.pid != leftover
        store = SequenceStore(embedded.url, OPTIONS)
        sequence = await store.read("u", IN_TIME)
        await store.close()
    assert sequence is not None
    assert sequence.item_ids == ["a"]
    command = Path(f"/proc/{leftover}/cmdline")
    assert not command.exists() or command.read_bytes() == b"", "the left-behind server still runs"


async def test_a_stale_socket_and_pid_file_are_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "redis.sock").write_text("stale")
    (folder / "redis.pid").write_text(str(os.getpid()))
    async with EmbeddedRedis(tmp_path) as embedded:
        store = SequenceStore(embedded.url, OPTIONS)
        await store.ping()
        await store.close()


async def test_a_long_state_path_gets_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    async with EmbeddedRedis(deep) as embedded:
        assert len(str(embedded.socket_path)) < 100
        store = SequenceStore(embedded.url, OPTIONS)
        await store.ping()
        await store.close()


async def test_a_state_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match=r"state_dir: cannot use .*file"):
        async with EmbeddedRedis(tmp_path / "file"):
            pass


async def test_a_damaged_append_only_file_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "appendonly.aof").write_bytes(b"*3\r\n$3\r\nSET\r\n$nonsense" + b"\x00" * 500 + b"*1\r\n")
    (folder / "appendonlydir").mkdir()
    (folder / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedRedisError, match=r"did not start: .+"):
        async with EmbeddedRedis(tmp_path):
            pass


async def test_a_missing_binary_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedRedisError, match="T2DIFF_REDIS_URL"):
        EmbeddedRedis(Path("x"))
