"""From a checkpoint to a bundle in the store: embed, index, measure, record, seal, check, add.

The bundle is finished and checked in a staging folder; the store sees it complete or not at all.
Publishing it is a step of its own.
"""

from __future__ import annotations

import importlib.metadata
import platform
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.ann import FAISS_VERSION, AnnIndex, build_index
from index_builder.bundle import load_bundle, write_bundle_files
from index_builder.bundle_files import seal
from index_builder.canary import record_canary, replay_canary
from index_builder.embed_items import embed_items, embed_prefixes
from index_builder.overlap import ann_overlap, tune
from index_builder.publish import Store
from index_builder.quality import Check, check_embeddings, check_overlap, require
from model.checkpoint import Checkpoint

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
    index_kind: str = "auto",
    device: str = "cpu",
    target_overlap: float = 0.99,
    report: Callable[[str], None] = lambda stage: None,
) -> str:
    """Build a bundle, add it to `store` without publishing it, and return its id.

    device: where the index is searched while it is measured   target_overlap: what an approximate index
    is tuned to, as overlap with exact search at 100   report: called with each of STAGES as it begins
    Raises ValueError for a checkpoint that cannot make a bundle, QualityError (a ValueError) for a build
    that fails a check, BundleError when the finished bundle does not read back right.
    """
    _check_checkpoint(checkpoint)
    model = checkpoint.model
    report(STAGES[0])
    embeddings = embed_items(model)
    checks = check_embeddings(embeddings)
    require(checks)
    report(STAGES[1])
    index = build_index(
        embeddings,
        kind=index_kind,
        metric=model.metric,
        device=device,
        target_overlap=target_overlap,
        seed=checkpoint.seed,
    )
    report(STAGES[2])
    queries = embed_prefixes(model, checkpoint.tuning or checkpoint.canary, max_queries=_MAX_QUERIES)
    checks.append(check_overlap(_tune_and_measure(index, embeddings, queries, target_overlap)))
    require(checks)
    report(STAGES[3])
    canary = record_canary(model, index, checkpoint.item_ids, checkpoint.canary)
    report(STAGES[4])
    with store.staging() as staging:
        folder = staging / "bundle"
        folder.mkdir()
        write_bundle_files(
            folder,
            model=model,
            item_ids=checkpoint.item_ids,
            item_embeddings=embeddings,
            index=index,
            popular=[checkpoint.item_ids[item - 1] for item in checkpoint.popular],
            canary=canary,
        )
        bundle_id = seal(folder, _manifest(checkpoint, embeddings, index, checks, len(queries)))
        folder = folder.rename(staging / bundle_id)
        report(STAGES[5])
        _check_finished(folder)
        store.add(folder)
    return bundle_id


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


def _check_finished(folder: Path) -> None:
    """Read the bundle as the service will, on the CPU, and ask it its canary."""
    bundle = load_bundle(folder)
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)


def _manifest(
    checkpoint: Checkpoint,
    embeddings: np.ndarray,
    index: AnnIndex,
    checks: list[Check],
    num_queries: int,
) -> dict[str, Any]:
    model = checkpoint.model
    return {
        "build": uuid.uuid4().hex,  # two builds in one second still get two ids
        "model": {"name": checkpoint.model_name, "config": checkpoint.model_config},
        "metric": model.metric,
        "dataset_id": checkpoint.dataset_id,
        "counts": {
            "items": len(embeddings),
            "embedding_dim": embeddings.shape[1],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "popular": len(checkpoint.popular),
            "canary": len(checkpoint.canary),
        },
        "index": {
            "kind": index.kind,
            "width": index.width,
            "rescored": index.rescored,
            "ann_overlap_at_100": _jsonable(checks[-1].value),
            "overlap_queries": num_queries,
        },
        "offline_metrics": _jsonable(checkpoint.metrics),
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
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
