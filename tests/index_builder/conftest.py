"""A tiny real checkpoint, and a store that holds a real bundle built from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from index_builder import ann
from index_builder.build import build_bundle
from index_builder.publish import Store
from model.checkpoint import Checkpoint, save_checkpoint
from tests.untrained import NUM_ITEMS, TINY, untrained_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    ann.set_num_threads(1)


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """make_checkpoint(seed=…, num_items=…, **settings): an untrained T2Diff with all it needs."""

    def make(seed: int = 0, num_items: int = NUM_ITEMS, **settings: Any) -> Checkpoint:
        return untrained_checkpoint(
            seed,
            {**TINY, **settings},
            num_items,
            item_ids=[f"film-{number}-é" for number in range(num_items)],
            popular=np.random.default_rng(seed).permutation(num_items)[:20].astype(np.int32) + 1,
            metrics={"validation/recall_at_20": 0.3125, "test/recall_at_20": 0.25},
            dataset_id="0" * 64,
        )

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint) -> Checkpoint:
    return make_checkpoint()


@pytest.fixture(scope="session")
def checkpoint_path(checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(path, checkpoint)
    return path


@pytest.fixture(scope="session")
def built(checkpoint, tmp_path_factory) -> Path:
    """The folder of a real bundle: copy it, don't change it."""
    store = Store(tmp_path_factory.mktemp("stores") / "built")
    bundle_id = build_bundle(checkpoint, store)
    return Path(store.bundle_url(bundle_id))


@pytest.fixture(scope="session")
def built_bundles(make_checkpoint, tmp_path_factory) -> list[Path]:
    """The folders of four real bundles in build order: copy them, don't change them."""
    store = Store(tmp_path_factory.mktemp("stores") / "four")
    return [Path(store.bundle_url(build_bundle(make_checkpoint(seed), store))) for seed in range(4)]


@pytest.fixture(params=["local", "memory", "s3"])
def store_url(request, tmp_path) -> Iterator[str]:
    """Where an empty store may be made: on disk, in an in-memory object store, in a real one over HTTP."""
    if request.param != "memory":
        yield str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_url")
        return
    yield "memory://bucket/store"
    memory = fsspec.filesystem("memory")
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


@pytest.fixture
def fill() -> Callable[[str, list[Path]], tuple[Store, list[str]]]:
    """fill(url, bundles): a store that holds copies of these bundles, unpublished, and their ids."""

    def fill_store(url: str, bundles: list[Path]) -> tuple[Store, list[str]]:
        store = Store(url)
        for bundle in bundles:
            with store.staging() as staging:
                store.add(Path(shutil.copytree(bundle, staging / bundle.name)))
        return store, [bundle.name for bundle in bundles]

    return fill_store
