"""Untrained bundles, small and quick to build: of items i1, i2, …, each seed another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from index_builder.build import build_bundle
from index_builder.publish import Store
from model.batch import Sequence
from model.checkpoint import Checkpoint
from model.registry import build_model

NUM_ITEMS = 60
TINY = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3}


def untrained_checkpoint(
    seed: int, config: dict[str, Any] = TINY, num_items: int = NUM_ITEMS, **other: Any
) -> Checkpoint:
    """A T2Diff with all that a bundle needs.   other: fields of the checkpoint that replace these"""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    choice = np.random.default_rng(seed)
    canary = []
    for length in (1, 4, 9):
        items = choice.integers(1, num_items + 1, size=length)
        times = 1_690_000_000 + np.cumsum(choice.integers(0, 5_000, size=length))
        canary.append(Sequence(items, times, int(times[-1]) + 60))
    fields: dict[str, Any] = {
        "model": build_model("t2diff", config, num_items).eval(),
        "model_name": "t2diff",
        "model_config": config,
        "item_ids": [f"i{number}" for number in range(1, num_items + 1)],
        "popular": np.arange(20, 0, -1, dtype=np.int32),
        "canary": canary,
        "metrics": {"validation/recall_at_20": 0.1},
        "dataset_id": "untrained",
        "seed": seed,
    }
    return Checkpoint(**(fields | other))


def build_untrained(
    store: Store, seed: int, config: dict[str, Any] = TINY, num_items: int = NUM_ITEMS, **built: Any
) -> str:
    """Build one and return its id; nothing is published.   built: further arguments of `build_bundle`"""
    return build_bundle(untrained_checkpoint(seed, config, num_items), store, **built)
