"""A bundle of any size without training: for measuring memory, start-up and load, never for serving users.

Its item embeddings are those of `clustered_embeddings`; its user tower is an untrained T2Diff over them,
so that every part of the service does its real work.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from index_builder.build import build_bundle
from index_builder.clustered_embeddings import generate_embeddings
from index_builder.publish import Store
from model.batch import Sequence
from model.checkpoint import Checkpoint
from model.registry import build_model

_NUM_CANARIES = 8
_NUM_TUNING = 256
_CANARY_LENGTH = 40
_NUM_POPULAR = 1_000
_FIRST_TIME = 1_700_000_000


def generate_bundle(
    store: Store,
    *,
    num_items: int,
    dim: int = 64,
    index_kind: str = "auto",
    target_overlap: float = 0.99,
    seed: int = 0,
    item_prefix: str = "item",
    report: Callable[[str], None] = lambda stage: None,
) -> str:
    """Build a bundle of `num_items` generated items in `store`, unpublished; returns its id.

    item_prefix: of the item ids, so that bundles can be told apart by what they answer
    """
    report("generating")
    checkpoint = generate_checkpoint(num_items=num_items, dim=dim, seed=seed, item_prefix=item_prefix)
    return build_bundle(
        checkpoint, store, index_kind=index_kind, target_overlap=target_overlap, report=report
    )


def generate_checkpoint(
    *, num_items: int, dim: int = 64, seed: int = 0, item_prefix: str = "item"
) -> Checkpoint:
    """The checkpoint of such a bundle."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = {"embedding_dim": dim}
    model = build_model("t2diff", config, num_items).eval()
    table = model.get_parameter("item_table.weight")
    with torch.no_grad():
        table[1:] = torch.from_numpy(generate_embeddings(num_items, dim, num_users=1, seed=seed)[0])
    return Checkpoint(
        model=model,
        model_name="t2diff",
        model_config=config,
        item_ids=[f"{item_prefix}-{number}" for number in range(num_items)],
        popular=rng.permutation(num_items)[:_NUM_POPULAR].astype(np.int32) + 1,
        canary=[_sequence(rng, num_items) for _ in range(_NUM_CANARIES)],
        tuning=[_sequence(rng, num_items) for _ in range(_NUM_TUNING)],
        metrics={},
        dataset_id=f"generated-{num_items}-{dim}-{seed}",
        seed=seed,
    )


def _sequence(rng: np.random.Generator, num_items: int) -> Sequence:
    items = rng.integers(1, num_items + 1, size=_CANARY_LENGTH)
    times = _FIRST_TIME + np.cumsum(rng.integers(1, 5_000, size=_CANARY_LENGTH))
    return Sequence(items, times, int(times[-1]) + 60)
