"""A bundle in use: model, index and everything else that one recall engine needs, from one folder.

A bundle is read in two strides that never mix: `bundle_files` verifies the bytes of every file, then they
are parsed here. No pickle anywhere. What grows with the catalogue (weights, item embeddings, item ids, the
index) is mapped: memory holds what requests touch, and the item embeddings only once. The files may be
unlinked meanwhile, as a download is at once; they must never be written to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from index_builder import bundle_files
from index_builder.ann import AnnIndex
from index_builder.bundle_files import BundleError, check_bundle
from index_builder.canary import CanaryCase, decode_canary, encode_canary
from index_builder.embedding_file import map_item_embeddings, write_item_embeddings
from index_builder.item_ids import read_item_ids, write_item_ids
from index_builder.mapped_tensors import map_weights, write_weights
from index_builder.pointer import read_pointer
from index_builder.storage import StoreError, open_storage
from model.registry import build_model
from model.two_tower import TwoTower
from model.unfilled import Unfilled


@dataclass(frozen=True)
class Bundle:
    """One build's model with the index of its own item embeddings.

    model: in evaluation mode, on the asked device   item_ids: item_ids[m] has item index m + 1
    item_index_of: item id -> item index   index: row m is item index m + 1   item_embeddings: (M, D)
    popular: item ids, most popular first   canary: sequences with the candidates that they must give
    """

    bundle_id: str
    manifest: dict[str, Any]
    model: TwoTower
    item_ids: Sequence[str]
    item_index_of: Mapping[str, int]
    index: AnnIndex
    item_embeddings: np.ndarray
    popular: list[str]
    canary: list[CanaryCase]

    @property
    def model_name(self) -> str:
        """The registry's name of the model, e.g. `t2diff`."""
        return self.manifest["model"]["name"]


def current_bundle(store_url: str | Path) -> str | None:
    """The URL of the bundle that the store's pointer names, or None before the first publication.

    Raises BundleError when the pointer cannot be read or is damaged, StoreError for an unusable URL.
    """
    storage = open_storage(store_url)
    history = read_pointer(storage)
    return f"{storage.url}/{history[0]}" if history else None


def load_bundle(
    path_or_url: str | Path, *, device: str = "cpu", verify: bool = True, cache_dir: Path | None = None
) -> Bundle:
    """Read, verify and only then parse the bundle folder at a path or fsspec URL.

    device: where the model, and the index if it can, shall run   verify: False skips the checksums
    cache_dir: where a remote bundle is downloaded to (default: the system's temp folder). It needs room on
    disk for as long as the bundle is in use, though its name is gone at once.
    Raises BundleError when the bundle is missing, damaged, incomplete, or its parts do not fit.
    """
    url = str(path_or_url).rstrip("/")
    parent, slash, name = url.rpartition("/")
    try:
        with open_storage(parent or slash or ".").local_copy(name, cache_dir) as folder:
            return _parse(name, check_bundle(folder, verify=verify), folder, device)
    except (OSError, StoreError) as error:
        raise BundleError(f"cannot read bundle {path_or_url}: {error}") from error


def write_bundle_files(
    folder: Path,
    *,
    model: TwoTower,
    item_ids: Sequence[str],
    item_embeddings: np.ndarray,
    index: AnnIndex,
    popular: Sequence[str],
    canary: Sequence[CanaryCase],
) -> None:
    """Everything of a bundle but its manifest, which `bundle_files.seal` adds."""
    write_weights(folder / bundle_files.WEIGHTS, model.state_dict())
    write_item_embeddings(folder / bundle_files.ITEM_EMBEDDINGS, item_embeddings, model.state_dict())
    index.save(folder / bundle_files.INDEX)
    write_item_ids(folder / bundle_files.ITEM_IDS, item_ids)
    (folder / bundle_files.POPULAR).write_bytes(json.dumps(list(popular), ensure_ascii=False).encode())
    (folder / bundle_files.CANARY).write_bytes(encode_canary(canary, item_ids))


def _parse(bundle_id: str, manifest: dict[str, Any], folder: Path, device: str) -> Bundle:
    """Verified files -> Bundle."""
    with _reading(bundle_id, bundle_files.ITEM_IDS):
        item_ids, item_index_of = read_item_ids(folder / bundle_files.ITEM_IDS)
    with _reading(bundle_id, bundle_files.WEIGHTS):
        weights = map_weights(folder / bundle_files.WEIGHTS)
    with _reading(bundle_id, bundle_files.ITEM_EMBEDDINGS):
        path = folder / bundle_files.ITEM_EMBEDDINGS
        item_embeddings = map_item_embeddings(path, weights, manifest["counts"]["items"])
        if len(item_embeddings) != len(item_ids):
            raise ValueError(f"{len(item_embeddings)} embeddings for {len(item_ids)} item ids")
    with _reading(bundle_id, bundle_files.WEIGHTS):
        model = _read_model(weights, manifest["model"], len(item_ids), device)
    with _reading(bundle_id, bundle_files.INDEX):
        index = AnnIndex.open(
            folder / bundle_files.INDEX,
            kind=manifest["index"]["kind"],
            rescored=manifest["index"]["rescored"],
            metric=model.metric,
            embeddings=item_embeddings,
            device=device,
        )
    with _reading(bundle_id, bundle_files.POPULAR):
        popular = json.loads((folder / bundle_files.POPULAR).read_bytes())
        unknown = [item_id for item_id in popular if item_id not in item_index_of]
        if unknown:
            raise ValueError(f"popular item {unknown[0]!r} is not among the item ids")
    with _reading(bundle_id, bundle_files.CANARY):
        canary = decode_canary((folder / bundle_files.CANARY).read_bytes(), item_index_of)
    return Bundle(
        bundle_id=bundle_id,
        manifest=manifest,
        model=model,
        item_ids=item_ids,
        item_index_of=item_index_of,
        index=index,
        item_embeddings=item_embeddings,
        popular=popular,
        canary=canary,
    )


def _read_model(
    weights: dict[str, torch.Tensor], spec: dict[str, Any], num_items: int, device: str
) -> TwoTower:
    with Unfilled():
        model = build_model(spec["name"], spec["config"], num_items)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _reading(bundle_id: str, name: str) -> Iterator[None]:
    """Whatever a parser throws at verified bytes is a BundleError that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"bundle {bundle_id}: {name} cannot be used: {error}") from error
