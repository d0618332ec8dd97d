"""A bundle in memory: model, index and everything else that one recall engine needs, from one folder.

A bundle is read in two strides that never mix: `bundle_files` reads and verifies the bytes of every file,
then those same bytes are parsed here. No pickle anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
from safetensors import SafetensorError

from index_builder import bundle_files
from index_builder.ann import AnnIndex
from index_builder.bundle_files import BundleError, read_bundle
from index_builder.canary import CanaryCase, decode_canary, encode_canary
from index_builder.pointer import read_pointer
from index_builder.storage import StoreError, open_storage
from model.registry import build_model
from model.two_tower import TwoTower

_TENSOR = "item_embeddings"


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
    item_ids: list[str]
    item_index_of: dict[str, int]
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
    cache_dir: where a remote bundle is downloaded to while it is read (default: the system's temp folder)
    Raises BundleError when the bundle is missing, damaged, incomplete, or its parts do not fit.
    """
    url = str(path_or_url).rstrip("/")
    parent, slash, name = url.rpartition("/")
    try:
        with open_storage(parent or slash or ".").local_copy(name, cache_dir) as folder:
            manifest, contents = read_bundle(folder, verify=verify)
    except (OSError, StoreError) as error:
        raise BundleError(f"cannot read bundle {path_or_url}: {error}") from error
    return _parse(name, manifest, contents, device)


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
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    (folder / bundle_files.WEIGHTS).write_bytes(safetensors.torch.save(weights))
    embeddings = {_TENSOR: np.ascontiguousarray(item_embeddings)}
    (folder / bundle_files.ITEM_EMBEDDINGS).write_bytes(safetensors.numpy.save(embeddings))
    index.save(folder / bundle_files.INDEX)
    (folder / bundle_files.ITEM_IDS).write_bytes(json.dumps(list(item_ids), ensure_ascii=False).encode())
    (folder / bundle_files.POPULAR).write_bytes(json.dumps(list(popular), ensure_ascii=False).encode())
    (folder / bundle_files.CANARY).write_bytes(encode_canary(canary, list(item_ids)))


def _parse(bundle_id: str, manifest: dict[str, Any], contents: dict[str, bytes], device: str) -> Bundle:
    """Verified bytes -> Bundle. Each file's bytes are let go once they are parsed."""
    with _reading(bundle_id, bundle_files.ITEM_IDS):
        item_ids = json.loads(contents.pop(bundle_files.ITEM_IDS))
        item_index_of = {item_id: row + 1 for row, item_id in enumerate(item_ids)}
        if len(item_index_of) != len(item_ids) or not all(isinstance(item_id, str) for item_id in item_ids):
            raise ValueError("item ids must be distinct strings")
    with _reading(bundle_id, bundle_files.ITEM_EMBEDDINGS):
        item_embeddings = safetensors.numpy.load(contents.pop(bundle_files.ITEM_EMBEDDINGS))[_TENSOR]
        if len(item_embeddings) != len(item_ids):
            raise ValueError(f"{len(item_embeddings)} embeddings for {len(item_ids)} item ids")
    with _reading(bundle_id, bundle_files.WEIGHTS):
        spec = manifest["model"]
        model = build_model(spec["name"], spec["config"], len(item_ids))
        model.load_state_dict(safetensors.torch.load(contents.pop(bundle_files.WEIGHTS)))
        model.eval().requires_grad_(False).to(device)
    with _reading(bundle_id, bundle_files.INDEX):
        index = AnnIndex.from_bytes(
            contents.pop(bundle_files.INDEX),
            kind=manifest["index"]["kind"],
            metric=model.metric,
            embeddings=item_embeddings,
            device=device,
        )
    with _reading(bundle_id, bundle_files.POPULAR):
        popular = json.loads(contents.pop(bundle_files.POPULAR))
        unknown = [item_id for item_id in popular if item_id not in item_index_of]
        if unknown:
            raise ValueError(f"popular item {unknown[0]!r} is not among the item ids")
    with _reading(bundle_id, bundle_files.CANARY):
        canary = decode_canary(contents.pop(bundle_files.CANARY), item_index_of)
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


@contextmanager
def _reading(bundle_id: str, name: str) -> Iterator[None]:
    """Whatever a parser throws at verified bytes is a BundleError that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as error:
        raise BundleError(f"bundle {bundle_id}: {name} cannot be used: {error}") from error
