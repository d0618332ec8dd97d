"""An embedding for an item that no model was trained on, in the space of one bundle.

The mean of the embeddings of similar items points the right way and is useless as it is: a mean of k vectors
is shorter, and much of every embedding says how popular its item is, not for whom it is. So both are set
apart. Along the direction in which popular items differ from all others the new item gets what a median item
has; across it the direction of its similar items and their length. Features, where the bundle has them, give
a second direction, and the more was counted for the first the less the second matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from index_builder.bundle import Bundle
from index_builder.delta import NewItem

POPULAR_SHARE = 0.1
_MAX_POPULAR = 1_000
_MAX_SAMPLE = 100_000


@dataclass(frozen=True)
class ItemSpace:
    """How a bundle's items lie.

    embeddings: (M, D)   popular: (D,) unit vector along which popular items differ, or zero
    median_popularity: what a median item has along it   median_length: what a median item has across it
    """

    embeddings: np.ndarray
    popular: np.ndarray
    median_popularity: float
    median_length: float

    def across(self, rows: np.ndarray) -> np.ndarray:
        """What is left of items without their popularity.   rows: (k,)   -> (k, D)"""
        found = self.embeddings[rows]
        return found - (found @ self.popular)[:, None] * self.popular

    def place(self, direction: np.ndarray, length: float) -> np.ndarray | None:
        """An item of median popularity.   direction: (D,) across it, of any length   -> (D,) or None"""
        norm = float(np.linalg.norm(direction))
        if not norm > 1e-9 * max(1.0, length):
            return None
        return (direction * (length / norm) + self.median_popularity * self.popular).astype(np.float32)


def item_space(embeddings: np.ndarray, popular_rows: np.ndarray) -> ItemSpace:
    """Measure a bundle's space on a sample of its items.

    embeddings: (M, D)   popular_rows: rows of the most popular items, most popular first
    """
    sample = embeddings[:: -(-len(embeddings) // _MAX_SAMPLE)]
    num_popular = min(len(popular_rows), _MAX_POPULAR, max(1, round(POPULAR_SHARE * len(embeddings))))
    popular = np.zeros(embeddings.shape[1], dtype=np.float32)
    if num_popular:
        difference = embeddings[popular_rows[:num_popular]].mean(axis=0) - sample.mean(axis=0)
        popular = difference / max(float(np.linalg.norm(difference)), 1e-12)
    along = sample @ popular  # (M',)
    lengths = np.linalg.norm(sample - along[:, None] * popular, axis=1)
    return ItemSpace(embeddings, popular, float(np.median(along)), float(np.median(lengths)))


def bundle_space(bundle: Bundle) -> ItemSpace:
    """The space of a loaded bundle."""
    rows = [bundle.item_index_of[item_id] - 1 for item_id in bundle.popular[:_MAX_POPULAR]]
    return item_space(bundle.item_embeddings, np.array(rows, dtype=np.int64))


def embed_new_items(items: Iterable[NewItem], bundle: Bundle) -> tuple[list[str], np.ndarray]:
    """Embeddings of the items that can be placed: something similar is in the bundle.

    -> their ids (n,) and embeddings (n, D) float32
    """
    space, item_ids, embeddings = None, [], []
    for item in items:
        space = space or bundle_space(bundle)
        found = [(bundle.item_index_of.get(name), weight) for name, weight in item.similar.items()]
        rows = np.array([index - 1 for index, _ in found if index], dtype=np.int64)
        weights = np.array([weight for index, weight in found if index], dtype=np.float64)
        embedding = embed_by_similar(space, rows, weights)
        if embedding is not None:
            item_ids.append(item.item_id)
            embeddings.append(embedding)
    if not embeddings:
        return [], np.empty((0, bundle.item_embeddings.shape[1]), dtype=np.float32)
    return item_ids, np.stack(embeddings)


def embed_by_similar(space: ItemSpace, rows: np.ndarray, weights: np.ndarray) -> np.ndarray | None:
    """The embedding of an item that is consumed together with others.   rows, weights: (k,)   -> (D,)"""
    if not len(rows):
        return None
    across = space.across(rows)  # (k, D)
    shares = weights / weights.sum()
    return space.place(shares @ across, float(shares @ np.linalg.norm(across, axis=1)))
