"""How well items that no model was trained on are placed: a bundle's own items stand in for them.

Some items are hidden, defined anew by what stands beside them in the log of their first consumers, and
ranked among all others for their later consumers. Their trained embeddings answer the same questions; the
model has met the items in histories, which a really new item has not. `exposure` is the share of random
moments at which an item is among the first 20: a placement that shows new items to everybody is no good one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from index_builder.bundle import Bundle
from index_builder.item_features import fit_features
from index_builder.new_items import bundle_space, embed_new_item, served_row
from index_builder.similar_items import similar_at
from model.batch import Sequence as Behaviours
from model.batch import collate
from model.data.interactions import Interactions
from model.engines.tower_engine import build_tower_engine
from model.noise import request_key

_BATCH_SIZE = 64
_MIN_HISTORY = 5


@dataclass(frozen=True)
class Trial:
    """The figures of one way to place an item."""

    placed_by: str
    recall_at_20: float
    recall_at_100: float
    exposure: float


def run_trial(
    bundle: Bundle,
    log: Interactions,
    *,
    num_items: int = 100,
    num_consumers: int = 10,
    questions_per_item: int = 20,
    catalogue: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Trial]:
    """Hide `num_items` items of the bundle that have consumers to spare, and place them in several ways.

    Raises ValueError when the log and the bundle have too few such items in common.
    """
    random = np.random.default_rng(seed)
    bundle_index = np.array([0, *(bundle.item_index_of.get(name, 0) for name in log.item_ids)])
    counts = np.bincount(log.item_index, minlength=log.num_items + 1)
    is_served = bundle.rows.served(bundle_index) > 0
    fit = np.flatnonzero((counts >= num_consumers + questions_per_item) & is_served)
    if not len(fit):
        raise ValueError(
            f"no item of the bundle has {num_consumers + questions_per_item} consumers in the log"
        )
    hidden = random.choice(fit, min(num_items, len(fit)), replace=False)  # item indices of the log
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets))
    first, asked = [], []
    for item in hidden:
        places = np.flatnonzero(log.item_index == item)
        places = places[np.argsort(log.timestamp[places], kind="stable")]
        later = places[num_consumers:]
        later = later[later - log.offsets[user[later]] >= _MIN_HISTORY]
        first.append(places[:num_consumers])
        asked.append(random.permutation(later)[:questions_per_item])
    anywhere = random.choice(len(log), min(20 * len(hidden), len(log)), replace=False)
    anywhere = anywhere[anywhere - log.offsets[user[anywhere]] >= _MIN_HISTORY]
    queries = _embed_users(bundle, log, bundle_index, user, np.concatenate([*asked, anywhere]))
    number = np.repeat(np.arange(len(hidden)), [len(places) for places in asked])
    rows = bundle.rows.served(bundle_index)[hidden] - 1
    of_items, of_anybody = queries[: len(number)], queries[len(number) :]
    questions = _Questions(bundle.item_embeddings, rows, number, of_items, of_anybody)
    usable = bundle_index > 0
    similar = [similar_at(log, places, usable) for places in first]
    ways = _placements(bundle, log, hidden, similar, rows, catalogue)
    return [questions.figures(name, embeddings) for name, embeddings in ways.items()]


@dataclass(frozen=True)
class _Questions:
    """items: (M, D)   rows: (h,) of the hidden ones   number: (Q,) which of those each question is about
    users: (Q, D)   anybody: (A, D)
    """

    items: np.ndarray
    rows: np.ndarray
    number: np.ndarray
    users: np.ndarray
    anybody: np.ndarray

    def figures(self, placed_by: str, embeddings: np.ndarray) -> Trial:
        """embeddings: (h, D) of the hidden items"""
        score = (self.users * embeddings[self.number]).sum(axis=1)  # (Q,)
        every = self.users @ self.items.T  # (Q, M)
        own = every[np.arange(len(every)), self.rows[self.number]]
        rank = (every > score[:, None]).sum(axis=1) - (own > score)
        last = np.partition(self.anybody @ self.items.T, -20, axis=1)[:, -20]  # (A,)
        exposure = (self.anybody @ embeddings.T > last[:, None]).mean()
        return Trial(placed_by, float((rank < 20).mean()), float((rank < 100).mean()), float(exposure))


def _placements(
    bundle: Bundle,
    log: Interactions,
    hidden: np.ndarray,
    similar: Sequence[Mapping[str, Mapping[str, float]]],
    rows: np.ndarray,
    catalogue: Mapping[str, Sequence[str]] | None,
) -> dict[str, np.ndarray]:
    space = bundle_space(bundle)
    ways: dict[str, list[np.ndarray | None]] = {"trained": list(bundle.item_embeddings[rows])}
    names = [log.item_ids[item - 1] for item in hidden]
    features = None
    if catalogue is not None:
        others = np.setdiff1d(np.arange(len(bundle.item_embeddings)), rows)
        tokens = [catalogue.get(bundle.item_ids[row], ()) for row in others.tolist()]
        features = fit_features(space.across(others), tokens)
    none = np.empty(0, dtype=np.int64)
    for name, found in zip(names, similar, strict=True):
        beside = found.get(name, {})
        near = np.array([served_row(bundle, other) for other in beside], dtype=np.int64)
        weights = np.array(list(beside.values()))[near >= 0]
        near = near[near >= 0]
        mean = weights @ bundle.item_embeddings[near] / weights.sum() if len(near) else None
        ways.setdefault("mean as it is", []).append(mean)
        ways.setdefault("similar items", []).append(embed_new_item(space, near, weights))
        if features is not None and catalogue is not None:
            said = features.direction(catalogue.get(name, ()))
            ways.setdefault("features", []).append(embed_new_item(space, none, none, said))
            ways.setdefault("both", []).append(embed_new_item(space, near, weights, said))
    nowhere = np.full(bundle.item_embeddings.shape[1], -1e3, dtype=np.float32)
    return {way: np.stack([nowhere if e is None else e for e in found]) for way, found in ways.items()}


def _embed_users(
    bundle: Bundle, log: Interactions, bundle_index: np.ndarray, user: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Users as they were just before some rows of the log.   places: (Q,)   -> (Q, D)"""
    tower = build_tower_engine(bundle.model, kind="auto", num_threads=1)
    embedded = []
    for start in range(0, len(places), _BATCH_SIZE):
        sequences = []
        for place in places[start : start + _BATCH_SIZE].tolist():
            before = log.sequence(int(user[place]), end=place, request_time=int(log.timestamp[place]))
            items = bundle_index[before.item_index].astype(np.int64)
            known = items > 0
            sequences.append(Behaviours(items[known], before.timestamp[known], before.request_time))
        batch = collate(sequences, max_length=bundle.model.max_length)
        keys = [request_key(0, f"trial-{start + n}") for n in range(len(sequences))]
        embedded.append(tower.user_embeddings(batch, keys)[:, 0].float().cpu().numpy())
    return np.concatenate(embedded)
