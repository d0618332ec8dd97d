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
from typing import TYPE_CHECKING

import numpy as np

from index_builder.delta import NewItem

if TYPE_CHECKING:
    from index_builder.bundle import Bundle

POPULAR_SHARE = 0.1
FEATURES_COUNT = 60.0
"""Features weigh as much as this many counts of similar items: the best of 5, 20, 60, 200 (MovieLens-1M)."""
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
    rows = [served_row(bundle, item_id) for item_id in bundle.popular[:_MAX_POPULAR]]
    return item_space(bundle.item_embeddings, np.array([row for row in rows if row >= 0], dtype=np.int64))


def served_row(bundle: Bundle, item_id: str) -> int:
    """The row of a bundle's index and item embeddings, -1 for an item that it does not serve."""
    return bundle.item_index_of.get(item_id, 0) - 1


def embed_new_items(items: Iterable[NewItem], bundle: Bundle) -> tuple[list[str], np.ndarray]:
    """Embeddings of the items that can be placed: something similar is in the bundle.

    -> their ids (n,) and embeddings (n, D) float32
    """
    space, item_ids, embeddings = None, [], []
    for item in items:
        space = space or bundle_space(bundle)
        rows = np.array([served_row(bundle, name) for name in item.similar], dtype=np.int64)
        weights = np.array(list(item.similar.values()), dtype=np.float64)
        known = bundle.features
        by_features = None if known is None else known.direction(item.features)
        embedding = embed_new_item(space, rows[rows >= 0], weights[rows >= 0], by_features)
        if embedding is not None:
            item_ids.append(item.item_id)
            embeddings.append(embedding)
    if not embeddings:
        return [], np.empty((0, bundle.item_embeddings.shape[1]), dtype=np.float32)
    return item_ids, np.stack(embeddings)


def embed_new_item(
    space: ItemSpace, rows: np.ndarray, weights: np.ndarray, by_features: np.ndarray | None = None
) -> np.ndarray | None:
    """The embedding of an item that is consumed together with others, or has features, or both.

    rows, weights: (k,) similar items and how often each was seen beside it   by_features: (D,) or None
    -> (D,), or None when nothing is known of it
    """
    if not len(rows):
        return None if by_features is None else space.place(by_features, space.median_length)
    across = space.across(rows)  # (k, D)
    shares = weights / weights.sum()
    direction, length = shares @ across, float(shares @ np.linalg.norm(across, axis=1))
    if by_features is not None:
        trust = weights.sum() / (weights.sum() + FEATURES_COUNT)
        direction = trust * _unit(direction) + (1 - trust) * _unit(by_features)
    return space.place(direction, length)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
