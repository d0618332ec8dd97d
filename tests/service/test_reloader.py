"""Reloading: a newer bundle is swapped in, a bad one refused while the old keeps serving."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index_builder.bundle import load_bundle
from index_builder.publish import Store
from service.engine import Engine
from service.metrics import Metrics
from service.reloader import Reloader
from service.settings import ServiceSettings

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_store(bundles: Path, tmp_path: Path) -> Store:
    shutil.copytree(bundles, tmp_path / "store")
    return Store(tmp_path / "store")


class Loaded:
    """A reloader on a store, and what it put into service."""

    def __init__(self, store: Store, **settings: Any) -> None:
        self.engines: list[Engine] = []
        self.metrics = Metrics()

        async def on_device(function: Callable[[], Engine]) -> Engine:
            return function()

        self.reloader = Reloader(
            ServiceSettings(bundles=store.url, max_batch=2, **settings),
            device="cpu",
            metrics=self.metrics,
            on_loaded=self.engines.append,
            on_device=on_device,
        )

    @property
    def served(self) -> list[str]:
        return [engine.bundle.bundle_id for engine in self.engines]

    def counted(self, outcome: str) -> float:
        value = self.metrics.registry.get_sample_value("t2diff_reloads_total", {"outcome": outcome})
        assert value is not None
        return value


async def test_the_current_bundle_is_loaded_once(own_store: Store) -> None:
    loaded = Loaded(own_store)
    assert (await loaded.reloader.check())["outcome"] == "loaded"
    assert (await loaded.reloader.check())["outcome"] == "unchanged"
    assert loaded.served == [own_store.current()]


async def test_a_newer_bundle_is_swapped_in_and_a_rollback_as_well(own_store: Store, build: Any) -> None:
    loaded = Loaded(own_store)
    await loaded.reloader.check()
    first = own_store.current()
    second = build(own_store, 1)
    assert (await loaded.reloader.check())["outcome"] == "unchanged", "built but not published"
    own_store.publish(second)
    assert await loaded.reloader.check() == {"outcome": "loaded", "bundle": second}
    own_store.rollback()
    await loaded.reloader.check()
    assert loaded.served == [first, second, first]
    assert loaded.counted("loaded") == 3


@pytest.mark.parametrize(
    "name", ["model.safetensors", "item_ids.safetensors", "index.faiss", "canary.json", "manifest.json"]
)
async def test_a_flipped_bit_in_any_file_is_refused(own_store: Store, build: Any, name: str) -> None:
    loaded = Loaded(own_store)
    await loaded.reloader.check()
    second = build(own_store, 1)
    own_store.publish(second)
    path = Path(own_store.url) / second / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    outcome = await loaded.reloader.check()
    assert outcome["outcome"] == "refused"
    assert name in outcome["reason"]
    assert len(loaded.engines) == 1
    assert loaded.counted("refused") == 1
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert (await loaded.reloader.check())["outcome"] == "loaded", "repaired and asked for again"


@pytest.mark.parametrize(
    "pointer", [b"", b"nonsense", b"../../etc\n", b"20260101T000000Z-00000000\n", b"\xff\xfe"]
)
async def test_a_pointer_to_nothing_is_refused(own_store: Store, pointer: bytes) -> None:
    loaded = Loaded(own_store)
    await loaded.reloader.check()
    (Path(own_store.url) / "CURRENT").write_bytes(pointer)
    assert (await loaded.reloader.check())["outcome"] == "refused"
    assert len(loaded.engines) == 1


async def test_an_empty_store_is_named(tmp_path: Path) -> None:
    outcome = await Loaded(Store(tmp_path / "nothing")).reloader.check()
    assert outcome["outcome"] == "refused"
    assert str(tmp_path / "nothing") in outcome["reason"]


async def test_polling_finds_a_newer_bundle_and_tries_a_refused_one_only_once(
    own_store: Store, build: Any
) -> None:
    loaded = Loaded(own_store, reload_poll_s=0.02)
    await loaded.reloader.check()
    polling = asyncio.create_task(loaded.reloader.poll())
    bad = build(own_store, 1)
    own_store.publish(bad)
    (Path(own_store.url) / bad / "index.faiss").write_bytes(b"")
    while not loaded.counted("refused") and len(loaded.engines) == 1:
        await asyncio.sleep(0.01)
    refused = loaded.counted("refused")
    await asyncio.sleep(0.2)
    assert loaded.counted("refused") == refused
    good = build(own_store, 2)
    own_store.publish(good)
    for _ in range(1000):
        if loaded.served[-1] == good:
            break
        await asyncio.sleep(0.02)
    assert loaded.served[-1] == good
    polling.cancel()


async def test_loading_does_not_run_on_the_event_loop(
    own_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return load_bundle(*arguments, **options)

    monkeypatch.setattr("service.reloader.load_bundle", noting)
    await Loaded(own_store).reloader.check()
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
