"""From a checkpoint to a bundle in the store: embed, index, measure, record, seal, check, add.

The bundle is finished and checked in a staging folder; the store sees it complete or not at all.
Publishing it is a step of its own.
"""

from __future__ import annotations

import importlib.metadata
import platform
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.ann import FAISS_VERSION, AnnIndex, build_index, remote_index
from index_builder.bundle import load_bundle, write_bundle_files
from index_builder.bundle_files import seal
from index_builder.canary import CanaryCase, record_canary, replay_canary
from index_builder.embed_items import embed_items, embed_prefixes
from index_builder.index_choice import EXACT_ABOVE
from index_builder.item_features import ItemFeatures, fit_features
from index_builder.item_rows import ItemRows
from index_builder.milvus_access import MilvusAccess
from index_builder.milvus_corpus import KIND, discarding_on_failure, write_corpus
from index_builder.milvus_search import open_searcher
from index_builder.new_items import item_space
from index_builder.overlap import ann_overlap, tune
from index_builder.publish import Store
from index_builder.quality import Check, check_embeddings, check_overlap, require
from model.checkpoint import Checkpoint
from model.two_tower import Metric, TwoTower

STAGES = (
    "embedding items",
    "indexing",
    "measuring the index",
    "recording the canary",
    "writing",
    "reading back and replaying the canary",
)
"""What `report` is told, in order."""

_MAX_QUERIES = 512
"""Half of them to tune on, half to measure with: where overlaps differ by 0.02 from user to user, 256 tell
their mean to 0.001."""


def build_bundle(
    checkpoint: Checkpoint,
    store: Store,
    *,
    rows: ItemRows = ItemRows(),
    index_kind: str = "auto",
    device: str = "cpu",
    target_overlap: float = 0.99,
    catalogue: Mapping[str, Sequence[str]] | None = None,
    titles: Mapping[str, str] | None = None,
    embed: Callable[[TwoTower], np.ndarray] = embed_items,
    milvus: MilvusAccess | None = None,
    report: Callable[[str], None] = lambda stage: None,
) -> str:
    """Build a bundle, add it to `store` without publishing it, and return its id.

    rows: which items of the checkpoint are served
    device: where the index is searched while it is measured   target_overlap: what an approximate index
    is tuned to, as overlap with exact search at 100   report: called with each of STAGES as it begins
    catalogue: item id -> features, by which new items can then be placed
    titles: item id -> title, shown to people   embed: gives the embeddings of all items, (M, D) float32
    milvus: for index kind milvus; the store's own when None
    Raises ValueError for a checkpoint that cannot make a bundle, QualityError (a ValueError) for a build
    that fails a check, BundleError when the finished bundle does not read back right.
    """
    milvus = milvus or store.milvus
    draft = draft_bundle(
        checkpoint,
        rows=rows,
        index_kind=index_kind,
        device=device,
        target_overlap=target_overlap,
        catalogue=catalogue,
        titles=titles,
        embed=embed,
        milvus=milvus,
        store_url=store.url,
        report=report,
    )
    report(STAGES[4])
    with discarding_on_failure(draft.index.corpus, milvus), store.staging() as staging:
        folder = staging / "bundle"
        folder.mkdir()
        draft.write(folder)
        bundle_id = seal(folder, draft.manifest)
        folder = folder.rename(staging / bundle_id)
        report(STAGES[5])
        check_finished(folder, milvus)
        store.add(folder)
    return bundle_id


@dataclass(frozen=True, eq=False)
class Draft:
    """A bundle that passed its checks and stands nowhere yet.   manifest: what `seal` takes"""

    checkpoint: Checkpoint
    rows: ItemRows
    embeddings: np.ndarray
    index: AnnIndex
    canary: list[CanaryCase]
    popular: list[str]
    features: ItemFeatures | None
    titles: Mapping[str, str] | None
    manifest: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Everything but the manifest."""
        write_bundle_files(
            folder,
            model=self.checkpoint.model,
            item_ids=self.checkpoint.item_ids,
            rows=self.rows,
            item_embeddings=self.embeddings,
            index=self.index,
            popular=self.popular,
            canary=self.canary,
            features=self.features,
            titles=self.titles,
        )


def draft_bundle(
    checkpoint: Checkpoint,
    *,
    rows: ItemRows = ItemRows(),
    index_kind: str = "auto",
    device: str = "cpu",
    target_overlap: float = 0.99,
    catalogue: Mapping[str, Sequence[str]] | None = None,
    titles: Mapping[str, str] | None = None,
    embed: Callable[[TwoTower], np.ndarray] = embed_items,
    milvus: MilvusAccess | None = None,
    store_url: str = "",
    report: Callable[[str], None] = lambda stage: None,
) -> Draft:
    """Embed, index, measure, record: the parameters, and what is raised, as of `build_bundle`.

    store_url: where the bundle will be added, for whoever prunes there
    """
    _check_checkpoint(checkpoint)
    model, ids = checkpoint.model, checkpoint.item_ids
    build = uuid.uuid4().hex  # two builds in one second still get two ids
    report(STAGES[0])
    embeddings = rows.embeddings(embed(model))
    checks = check_embeddings(embeddings)
    require(checks)
    report(STAGES[1])
    if index_kind == KIND:
        milvus = milvus or MilvusAccess.of_environment()
        index = _remote_index(
            embeddings,
            rows.ids(ids),
            model.metric,
            milvus,
            build=build,
            store_url=store_url,
            exact=target_overlap > EXACT_ABOVE,
        )
    else:
        index = build_index(
            embeddings,
            kind=index_kind,
            metric=model.metric,
            device=device,
            target_overlap=target_overlap,
            seed=checkpoint.seed,
        )
    with discarding_on_failure(index.corpus, milvus):
        report(STAGES[2])
        queries = embed_prefixes(model, checkpoint.tuning or checkpoint.canary, max_queries=_MAX_QUERIES)
        checks.append(check_overlap(_tune_and_measure(index, embeddings, queries, target_overlap)))
        require(checks)
        report(STAGES[3])
        popular = [ids[item - 1] for item in checkpoint.popular.tolist() if rows.is_served(item)]
        return Draft(
            checkpoint=checkpoint,
            rows=rows,
            embeddings=embeddings,
            index=index,
            canary=record_canary(model, index, rows.ids(ids), checkpoint.canary),
            popular=popular,
            features=_features(checkpoint, rows, embeddings, catalogue),
            titles=titles,
            manifest=_manifest(checkpoint, build, embeddings, index, checks, len(queries), len(popular)),
        )


def check_finished(folder: Path, milvus: MilvusAccess | None = None) -> None:
    """Read the sealed bundle as the service will, on the CPU, and ask it its canary."""
    bundle = load_bundle(folder, milvus=milvus)
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)


def _remote_index(
    embeddings: np.ndarray,
    item_ids: Sequence[str],
    metric: Metric,
    milvus: MilvusAccess,
    *,
    build: str,
    store_url: str,
    exact: bool,
) -> AnnIndex:
    """A new collection of these embeddings, and the index that searches it.   embeddings: (M, D)"""
    if metric != "inner_product":
        raise ValueError(
            f"index kind {KIND} compares by inner product, the model by {metric}: use another kind"
        )
    corpus = write_corpus(milvus, embeddings, item_ids, build=build, store_url=store_url, exact=exact)
    return remote_index(embeddings, open_searcher(corpus, milvus))


def _features(
    checkpoint: Checkpoint,
    rows: ItemRows,
    embeddings: np.ndarray,
    catalogue: Mapping[str, Sequence[str]] | None,
) -> ItemFeatures | None:
    if not catalogue or not any(catalogue.values()):
        return None  # a catalogue may hold titles alone
    popular = rows.served(checkpoint.popular.astype(np.int64)) - 1
    space = item_space(embeddings, popular[popular >= 0])
    tokens = [catalogue.get(item_id, ()) for item_id in rows.ids(checkpoint.item_ids)]
    return fit_features(space.across(np.arange(len(embeddings))), tokens)


def _tune_and_measure(
    index: AnnIndex, embeddings: np.ndarray, queries: np.ndarray, target_overlap: float
) -> float:
    """Tune an approximate index on every second user embedding; the overlap that the others then see.

    embeddings: (M, D)   queries: (Q, D), at least one
    """
    if index.max_width > 0:
        tune(index, queries[::2], target_overlap=target_overlap)
    return ann_overlap(index, embeddings, queries[1::2] if len(queries) > 1 else queries)


def _check_checkpoint(checkpoint: Checkpoint) -> None:
    num_items, item_ids = checkpoint.model.num_items, checkpoint.item_ids
    if len(item_ids) != num_items:
        raise ValueError(f"the checkpoint has {len(item_ids)} item ids for {num_items} items: train it again")
    if len(set(item_ids)) != num_items:
        raise ValueError("the checkpoint's item ids are not distinct: train it again")
    if not checkpoint.canary:
        raise ValueError("the checkpoint has no canary sequences to check a bundle with: train it again")


def _manifest(
    checkpoint: Checkpoint,
    build: str,
    embeddings: np.ndarray,
    index: AnnIndex,
    checks: list[Check],
    num_queries: int,
    num_popular: int,
) -> dict[str, Any]:
    model = checkpoint.model
    return {
        "build": build,
        "model": {"name": checkpoint.model_name, "config": checkpoint.model_config},
        "metric": model.metric,
        "dataset_id": checkpoint.dataset_id,
        "counts": {
            "items": len(embeddings),
            "vocabulary": model.num_items,
            "embedding_dim": embeddings.shape[1],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "popular": num_popular,
            "canary": len(checkpoint.canary),
        },
        "index": {
            "kind": index.kind,
            "width": index.width,
            "rescored": index.rescored,
            "ann_overlap_at_100": _jsonable(checks[-1].value),
            "overlap_queries": num_queries,
            **({} if index.corpus is None else {KIND: index.corpus.record()}),
        },
        "offline_metrics": _jsonable(checkpoint.metrics),
        "checks": [check.record() for check in checks],
        "seed": checkpoint.seed,
        "git_commit": checkpoint.git_commit,
        "training_settings": _jsonable(checkpoint.settings),
        "libraries": _libraries(),
    }


def _libraries() -> dict[str, str]:
    names = ("torch", "numpy", "safetensors", "t2diff-recall")
    versions = {"python": platform.python_version(), "faiss": FAISS_VERSION}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _jsonable(value: Any) -> Any:
    """Numbers that JSON does not know (NaN, infinity) become null, deep down."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return value
