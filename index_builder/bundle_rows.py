"""Items of a bundle by id, in its two numberings: what its model reads, and what its index gives."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from index_builder.bundle import Bundle


def item_indices(bundle: Bundle, item_ids: Collection[str]) -> np.ndarray:
    """What a sequence holds for these items; 0 for an item that the model does not know.   -> (len,) int64"""
    known = bundle.item_index_of
    return np.array([known.get(item_id, 0) for item_id in item_ids], dtype=np.int64)


def served_rows(bundle: Bundle, item_ids: Collection[str]) -> np.ndarray:
    """The rows of these items in index and `item_embeddings`; -1 for one that cannot be recalled."""
    return bundle.rows.served(item_indices(bundle, item_ids)).astype(np.int64) - 1


def tower_embeddings(bundle: Bundle, rows: slice) -> np.ndarray:
    """What the item tower gives for these rows of `item_embeddings`, computed anew.   -> (len, D) float32"""
    with torch.inference_mode():
        of_all = bundle.model.item_embeddings()
        served = bundle.rows.item_index
        chosen = (
            of_all[rows] if served is None else of_all[torch.from_numpy(served[rows].astype(np.int64) - 1)]
        )
        return chosen.float().cpu().numpy()
