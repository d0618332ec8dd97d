"""Reloading: a newer bundle is swapped in, a bad one refused while the old keeps serving."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from index_builder.bundle import load_bundle
from index_builder.delta import DeltaFile, NewItem
from index_builder.publish import Store
from index_builder.signature import read_keys
from service.engine import Engine
from service.experiments import Experiment
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
        self.by_bundle: dict[str, Engine] = {}
        self.experiment: Experiment | None = None
        self.metrics = Metrics()

        async def on_device(function: Callable[[], Engine]) -> Engine:
            return function()

        self.reloader = Reloader(
            ServiceSettings(bundles=store.url, max_batch=2, **settings),
            device="cpu",
            metrics=self.metrics,
            on_loaded=self.engines.append,
            on_device=on_device,
            on_experiment=self._run,
            in_use=self._in_use,
            on_refreshed=self._refresh,
        )

    def _run(self, experiment: Experiment | None, engines: Mapping[str, Engine]) -> None:
        self.experiment, self.by_bundle = experiment, dict(engines)

    def _in_use(self) -> list[Engine]:
        used = [*self.by_bundle.values(), *self.engines[-1:]]
        return list({id(engine): engine for engine in used}.values())

    def _refresh(self, served: Engine, engine: Engine) -> None:
        self.by_bundle = {name: engine if held is served else held for name, held in self.by_bundle.items()}
        if self.engines and self.engines[-1] is served:
            self.engines.append(engine)

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


async def test_with_a_key_only_signed_bundles_are_served_and_the_key_may_be_replaced(
    own_store: Store, build: Any, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("first-key-" * 4)
    loaded = Loaded(own_store, signature_key=key)
    outcome = await loaded.reloader.check()
    assert outcome["outcome"] == "refused"
    assert "is not signed, and signature_key is set" in outcome["reason"]
    first = own_store.current()
    assert first is not None
    Store(own_store.url, keys=read_keys(key)).sign(first)
    assert (await loaded.reloader.check())["outcome"] == "loaded"
    key.write_text("other-key-" * 4 + "\n" + "first-key-" * 4)
    second = build(Store(own_store.url, keys=read_keys(key)), 1)
    own_store.publish(second)
    assert (await loaded.reloader.check())["bundle"] == second
    own_store.publish(build(own_store, 2))
    assert (await loaded.reloader.check())["outcome"] == "refused"
    assert loaded.served == [first, second]


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


def experiment(*bundles: str) -> Experiment:
    arms = [
        {"name": f"arm{number}", "bundle": bundle, "share": 100.0 if number == 0 else 0.0}
        for number, bundle in enumerate(bundles)
    ]
    return Experiment(name="e", arms=arms)  # type: ignore[arg-type]


async def test_each_bundle_of_an_experiment_is_loaded_once(own_store: Store, build: Any) -> None:
    loaded = Loaded(own_store)
    other = build(own_store, 1)
    current = own_store.current()
    assert current is not None
    outcome = await loaded.reloader.run(experiment("current", other, other, current))
    assert outcome == {"outcome": "loaded", "bundle": current}
    assert set(loaded.by_bundle) == {"current", other, current}
    assert loaded.by_bundle["current"] is loaded.by_bundle[current]
    assert loaded.by_bundle[other].bundle.bundle_id == other


async def test_an_experiment_that_changes_keeps_the_engines_that_it_still_names(
    own_store: Store, build: Any
) -> None:
    loaded = Loaded(own_store)
    first, second = build(own_store, 1), build(own_store, 2)
    await loaded.reloader.run(experiment("current", first))
    before = dict(loaded.by_bundle)
    await loaded.reloader.run(experiment("current", second))
    assert loaded.by_bundle["current"] is before["current"]
    assert loaded.by_bundle[second].bundle.bundle_id == second
    await loaded.reloader.run(None)
    assert loaded.by_bundle == {"current": before["current"]}
    assert loaded.experiment is None


async def test_only_an_arm_that_follows_the_pointer_is_swapped(own_store: Store, build: Any) -> None:
    loaded = Loaded(own_store)
    fixed, newer = build(own_store, 1), build(own_store, 2)
    await loaded.reloader.run(experiment("current", fixed))
    assert (await loaded.reloader.check())["outcome"] == "unchanged"
    own_store.publish(newer)
    assert await loaded.reloader.check() == {"outcome": "loaded", "bundle": newer}
    assert loaded.served == [newer]
    own_store.publish(fixed)
    await loaded.reloader.check()
    assert loaded.engines[-1] is loaded.by_bundle[fixed], "an arm has this bundle in use already"


async def test_without_an_arm_that_follows_it_the_pointer_changes_nothing(
    own_store: Store, build: Any
) -> None:
    loaded = Loaded(own_store)
    first, second = build(own_store, 1), build(own_store, 2)
    await loaded.reloader.run(experiment(first, second))
    own_store.publish(second)
    assert (await loaded.reloader.check())["outcome"] == "unchanged"
    assert loaded.engines == []


@pytest.mark.parametrize("damage", ["missing", "spoilt"])
async def test_an_experiment_with_a_bad_bundle_is_refused_whole_and_counted(
    own_store: Store, build: Any, damage: str
) -> None:
    loaded = Loaded(own_store)
    good, bad = build(own_store, 1), build(own_store, 2)
    await loaded.reloader.run(experiment("current", good))
    before = dict(loaded.by_bundle)
    if damage == "missing":
        shutil.rmtree(Path(own_store.url) / bad)
    else:
        path = Path(own_store.url) / bad / "popular.json"
        path.write_bytes(path.read_bytes() + b" ")
    outcome = await loaded.reloader.run(experiment("current", good, bad))
    assert outcome["outcome"] == "refused"
    assert outcome["reason"].startswith(f"arm 'arm2', bundle {bad}: ")
    assert ("no such folder" if damage == "missing" else "popular.json") in outcome["reason"]
    assert loaded.by_bundle == before
    assert loaded.counted("refused") == 1
    assert (await loaded.reloader.check())["outcome"] == "unchanged", "the experiment before it goes on"


async def test_a_delta_reaches_every_arm(own_store: Store, build: Any) -> None:
    loaded = Loaded(own_store)
    fixed = build(own_store, 1)
    await loaded.reloader.run(experiment("current", fixed))
    DeltaFile(own_store.url).delete(["i1"])
    await loaded.reloader.check()
    assert [engine.num_deleted_items for engine in loaded.by_bundle.values()] == [1, 1]
    newer = build(own_store, 2)
    await loaded.reloader.run(experiment("current", newer))
    assert [engine.num_deleted_items for engine in loaded.by_bundle.values()] == [1, 1]


async def test_a_delta_goes_with_every_bundle_and_a_swap_replaces_one_engine_by_another(
    own_store: Store, build: Any
) -> None:
    loaded = Loaded(own_store)
    file = DeltaFile(own_store.url)
    file.delete(["i1"])
    await loaded.reloader.check()
    assert [engine.num_deleted_items for engine in loaded.engines] == [1], "from the first answer on"
    assert (await loaded.reloader.check()) == {"outcome": "unchanged", "bundle": own_store.current()}
    added = file.add([NewItem("n1", {"i2": 1.0})])
    assert (await loaded.reloader.check())["delta"] == added.version
    assert loaded.engines[1].bundle is loaded.engines[0].bundle
    assert loaded.engines[0].num_new_items == 0, "what requests under way hold does not change"
    own_store.publish(build(own_store, 1))
    await loaded.reloader.check()
    assert [engine.num_new_items for engine in loaded.engines] == [0, 1, 1]
    file.undelete(["i1"])
    file.delete(["n1"])
    file.undelete(["n1"])
    await loaded.reloader.check()
    assert loaded.engines[-1].delta is None, "an empty delta costs a request nothing"
    assert loaded.engines[-1].delta_version == file.read().version


async def test_a_deletion_is_followed_while_a_bundle_takes_long_to_load(
    own_store: Store, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(own_store, reload_poll_s=0.02)
    await loaded.reloader.check()
    loading, goes_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any, **options: Any) -> Any:
        loading.set()
        goes_on.wait(60)
        return load_bundle(*arguments, **options)

    monkeypatch.setattr("service.reloader.load_bundle", slowly)
    polling = asyncio.create_task(loaded.reloader.poll())
    own_store.publish(build(own_store, 1))
    assert await asyncio.to_thread(loading.wait, 60)
    DeltaFile(own_store.url).delete(["i1"])
    for _ in range(1000):
        if loaded.engines[-1].num_deleted_items:
            break
        await asyncio.sleep(0.02)
    assert len(loaded.engines) == 2
    DeltaFile(own_store.url).delete(["i2"])
    goes_on.set()
    for _ in range(1000):
        if loaded.served[-1] == own_store.current() and loaded.engines[-1].num_deleted_items == 2:
            break
        await asyncio.sleep(0.02)
    assert loaded.engines[-1].delta is not None
    assert loaded.engines[-1].delta.deleted == {"i1", "i2"}
    polling.cancel()


async def test_an_old_engine_goes_with_its_last_holder(own_store: Store, build: Any) -> None:
    loaded = Loaded(own_store)
    bundles = [own_store.current(), build(own_store, 1)]
    engines: list[weakref.ref[Engine]] = []
    in_flight = None
    for number in range(20):
        own_store.publish(str(bundles[number % 2]))
        await loaded.reloader.check()
        engines.append(weakref.ref(loaded.engines[-1]))
        if number == 7:
            in_flight = loaded.engines[-1]
        del loaded.engines[:-1]
    gc.collect()
    assert [number for number, engine in enumerate(engines) if engine() is not None] == [7, 19]
    assert in_flight is not None
    old = weakref.ref(in_flight.bundle)
    del in_flight
    gc.collect()
    assert old() is None
