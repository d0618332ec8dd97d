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
from index_builder.item_features import ItemFeatures, read_features, write_features
from index_builder.item_ids import read_item_ids, write_item_ids
from index_builder.item_rows import ItemRows, read_item_rows, write_item_rows
from index_builder.mapped_tensors import map_weights, write_weights
from index_builder.milvus_access import MilvusAccess
from index_builder.milvus_corpus import Corpus
from index_builder.milvus_search import open_searcher
from index_builder.pointer import read_pointer
from index_builder.storage import StoreError, open_storage
from index_builder.titles import map_titles, write_titles
from model.registry import build_model
from model.two_tower import TwoTower
from model.unfilled import Unfilled


@dataclass(frozen=True)
class Bundle:
    """One build's model with the index of its own item embeddings.

    The vocabulary is every item that the model has a row for: what a sequence may hold. The served items
    are those of it that can be recalled: all, unless some are retired.

    model: in evaluation mode, on the asked device   vocabulary: vocabulary[v] has item index v + 1
    item_index_of: item id of the vocabulary -> item index
    item_ids: of the M served items, in the order of index and item_embeddings; item_ids[m] has the served
        index m + 1   index: row m is item_ids[m]   item_embeddings: (M, D)
    rows: which items are served, and what else a nightly build must know of each
    popular: served item ids, most popular first   canary: sequences with the candidates that they must give
    features: what features say of an item, or None when the bundle was built without a catalogue
    titles: of each row of the vocabulary, empty where unknown; None without a catalogue that has titles
    """

    bundle_id: str
    manifest: dict[str, Any]
    model: TwoTower
    vocabulary: Sequence[str]
    item_index_of: Mapping[str, int]
    item_ids: Sequence[str]
    rows: ItemRows
    index: AnnIndex
    item_embeddings: np.ndarray
    popular: list[str]
    canary: list[CanaryCase]
    features: ItemFeatures | None = None
    titles: Sequence[str] | None = None

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
    path_or_url: str | Path,
    *,
    device: str = "cpu",
    verify: bool = True,
    cache_dir: Path | None = None,
    keys: Sequence[bytes] = (),
    milvus: MilvusAccess | None = None,
) -> Bundle:
    """Read, verify and only then parse the bundle folder at a path or fsspec URL.

    device: where the model, and the index if it can, shall run   verify: False skips the checksums
    cache_dir: where a remote bundle is downloaded to (default: the system's temp folder). It needs room on
    disk for as long as the bundle is in use, though its name is gone at once.
    keys: where there are any, the bundle must be signed with one of them
    milvus: what opens a collection that the bundle names; what the environment says when None
    Raises BundleError when the bundle is missing, damaged, incomplete, or its parts do not fit.
    """
    url = str(path_or_url).rstrip("/")
    parent, slash, name = url.rpartition("/")
    try:
        with open_storage(parent or slash or ".").local_copy(name, cache_dir) as folder:
            manifest = check_bundle(folder, verify=verify, keys=keys)
            return _parse(name, manifest, folder, device, milvus)
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
    features: ItemFeatures | None = None,
    titles: Mapping[str, str] | None = None,
    rows: ItemRows = ItemRows(),
) -> None:
    """Everything of a bundle but its manifest, which `bundle_files.seal` adds.

    item_ids: of every row of the model   rows: which of them are served   item_embeddings: of those
    titles: item id -> title
    """
    write_weights(folder / bundle_files.WEIGHTS, model.state_dict())
    write_item_embeddings(folder / bundle_files.ITEM_EMBEDDINGS, item_embeddings, model.state_dict())
    index.save(folder / bundle_files.INDEX)
    write_item_ids(folder / bundle_files.ITEM_IDS, item_ids)
    if features is not None:
        write_features(folder / bundle_files.FEATURES, features)
    if titles:
        write_titles(folder / bundle_files.TITLES, item_ids, titles)
    write_item_rows(folder / bundle_files.ITEM_ROWS, rows, len(item_ids))
    (folder / bundle_files.POPULAR).write_bytes(json.dumps(list(popular), ensure_ascii=False).encode())
    (folder / bundle_files.CANARY).write_bytes(encode_canary(canary, item_ids))


def _parse(
    bundle_id: str, manifest: dict[str, Any], folder: Path, device: str, milvus: MilvusAccess | None
) -> Bundle:
    """Verified files -> Bundle."""
    with _reading(bundle_id, bundle_files.ITEM_IDS):
        vocabulary, item_index_of = read_item_ids(folder / bundle_files.ITEM_IDS)
    rows = ItemRows()
    if bundle_files.ITEM_ROWS in manifest["files"]:
        with _reading(bundle_id, bundle_files.ITEM_ROWS):
            rows = read_item_rows(folder / bundle_files.ITEM_ROWS, len(vocabulary))
    item_ids = rows.ids(vocabulary)
    with _reading(bundle_id, bundle_files.WEIGHTS):
        weights = map_weights(folder / bundle_files.WEIGHTS)
    with _reading(bundle_id, bundle_files.ITEM_EMBEDDINGS):
        path = folder / bundle_files.ITEM_EMBEDDINGS
        item_embeddings = map_item_embeddings(path, weights, manifest["counts"]["items"])
        if len(item_embeddings) != len(item_ids):
            raise ValueError(f"{len(item_embeddings)} embeddings for {len(item_ids)} item ids")
    with _reading(bundle_id, bundle_files.WEIGHTS):
        model = _read_model(weights, manifest["model"], len(vocabulary), device)
    with _reading(bundle_id, "its collection in Milvus"):
        corpus = Corpus.of(manifest)
        access = milvus or MilvusAccess.of_environment()
        searcher = None if corpus is None else open_searcher(corpus, access)
    with _reading(bundle_id, bundle_files.INDEX):
        index = AnnIndex.open(
            folder / bundle_files.INDEX,
            kind=manifest["index"]["kind"],
            rescored=manifest["index"]["rescored"],
            metric=model.metric,
            embeddings=item_embeddings,
            device=device,
            searcher=searcher,
            width=manifest["index"]["width"] if searcher else None,
        )
    with _reading(bundle_id, bundle_files.POPULAR):
        popular = json.loads((folder / bundle_files.POPULAR).read_bytes())
        for item_id in popular:
            if not rows.is_served(item_index_of.get(item_id)):
                raise ValueError(f"popular item {item_id!r} is not among the item ids")
    with _reading(bundle_id, bundle_files.CANARY):
        canary = decode_canary((folder / bundle_files.CANARY).read_bytes(), item_index_of)
    features = None
    if bundle_files.FEATURES in manifest["files"]:
        with _reading(bundle_id, bundle_files.FEATURES):
            features = read_features(folder / bundle_files.FEATURES, item_embeddings.shape[1])
    titles = None
    if bundle_files.TITLES in manifest["files"]:
        with _reading(bundle_id, bundle_files.TITLES):
            titles = map_titles(folder / bundle_files.TITLES, len(vocabulary))
    return Bundle(
        bundle_id=bundle_id,
        manifest=manifest,
        model=model,
        vocabulary=vocabulary,
        item_index_of=item_index_of,
        item_ids=item_ids,
        rows=rows,
        index=index,
        item_embeddings=item_embeddings,
        popular=popular,
        canary=canary,
        features=features,
        titles=titles,
    )


def _read_model(
    weights: dict[str, torch.Tensor], spec: dict[str, Any], num_items: int, device: str
) -> TwoTower:
    with Unfilled():
        model = build_model(spec["name"], spec["config"], num_items)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False).to(device)


_OF_PARSERS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


@contextmanager
def _reading(bundle_id: str, name: str) -> Iterator[None]:
    """Whatever a parser throws at verified bytes is a BundleError that names the file."""
    try:
        yield
    except (*_OF_PARSERS, SafetensorError) as error:
        raise BundleError(f"bundle {bundle_id}: {name} cannot be used: {error}") from error
