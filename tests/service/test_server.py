"""Starting: what cannot work is said in one line before anything is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from service.embedded_redis import EmbeddedRedisError
from service.server import StartError, serve
from service.settings import ServiceSettings

pytestmark = pytest.mark.anyio


def settings_of(bundles: Path, state: Path, **overrides: Any) -> ServiceSettings:
    values: dict[str, Any] = {
        "bundles": str(bundles),
        "state_dir": state,
        "port": 0,
        "admin_port": 0,
        "max_batch": 1,
    }
    return ServiceSettings(**(values | overrides))


@pytest.mark.parametrize("setting", ["port", "admin_port"])
async def test_a_taken_port_is_named(bundles: Path, tmp_path: Path, setting: str) -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        with pytest.raises(StartError, match=rf"^{setting} \(--.*\): cannot listen on 127.0.0.1:{port}: "):
            await serve(settings_of(bundles, tmp_path, **{setting: port}), announce=print)
    assert not (tmp_path / "redis").exists()


async def test_an_address_that_is_not_ours_is_named(bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"port .*: cannot listen on 203\.0\.113\.1:0: "):
        await serve(settings_of(bundles, tmp_path, host="203.0.113.1"), announce=print)


async def test_a_store_without_a_bundle_is_named_and_redis_is_stopped_again(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"^bundles \(--bundles, T2DIFF_BUNDLES\): no bundle was published"):
        await serve(settings_of(tmp_path / "empty", tmp_path), announce=print)
    assert not (tmp_path / "redis" / "redis.sock").exists()


async def test_a_state_folder_that_cannot_be_made_is_named(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match="state_dir: cannot use"):
        await serve(settings_of(bundles, tmp_path / "file"), announce=print)


async def test_an_unreachable_redis_of_ones_own_is_said_and_does_not_keep_the_service_from_starting(
    bundles: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    settings = settings_of(
        bundles, tmp_path, redis_url="redis://me:hunter2@127.0.0.1:1/0", shutdown_delay_s=0
    )
    serving = asyncio.create_task(serve(settings, announce=said.append))
    while not said and not serving.done():
        await asyncio.sleep(0.02)
    assert "redis://127.0.0.1:1/0, not reachable now" in said[0]
    assert "hunter2" not in said[0]
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, 20)
