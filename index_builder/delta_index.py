"""New items searched exactly beside a bundle's index, and deleted ones masked: one merged answer.

Immutable and bound to one bundle, like the engine that holds it. New items are few, so they are one matrix
product; deleted ones are few among any answer, so a little more is asked of the index and they are dropped,
and again more where that was not enough: `top_k` candidates whenever that many are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from index_builder.bundle import Bundle
from index_builder.delta import Delta
from index_builder.exact_search import exact_scores
from index_builder.new_items import embed_new_items, served_row
from index_builder.search_groups import is_allowed
from model.two_tower import Metric

_SPARE = 16
_WIDEN_BY = 4

Search = Callable[[np.ndarray, list[int]], tuple[np.ndarray, np.ndarray]]
"""Members (B',) of the batch and a K for each -> scores (B', K), rows (B', K) of the bundle's index"""


@dataclass(frozen=True)
class DeltaIndex:
    """A delta in the space of one bundle.

    version: the delta's   item_ids: (n,) new items that can be recalled   row_of: item id -> row of them
    embeddings: (n, D)   num_rows: M of the bundle's index; row M + i of an answer is new item i
    deleted: ids never to be recalled   deleted_rows: sorted rows of the bundle's index among them
    num_unplaced: new items of which nothing similar is in the bundle
    """

    version: str
    item_ids: list[str]
    row_of: dict[str, int]
    embeddings: np.ndarray
    metric: Metric
    num_rows: int
    deleted: frozenset[str]
    deleted_rows: np.ndarray
    num_unplaced: int

    def rows_of(self, item_ids: Iterable[str]) -> np.ndarray:
        """The rows of those ids that are new items.   -> (E,)"""
        return np.array([self.row_of[name] for name in item_ids if name in self.row_of], dtype=np.int64)

    def search(
        self,
        search: Search,
        routes: np.ndarray,
        top_k: Sequence[int],
        exclude: Sequence[np.ndarray | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best of the bundle's items and the new ones together, without the deleted.

        search: of the bundle's index   routes: (B, R, D) user embeddings   top_k: one per user
        exclude: per user the new items' rows never to return
        -> scores (B, K) best first, rows (B, K); -inf and -1 where fewer than K are allowed
        """
        score, rows = self._search_living(search, list(top_k))
        if len(self.item_ids):
            new_score, new_rows = self._search_new(routes, max(top_k), exclude)
            score = np.concatenate([score, new_score], axis=1)
            rows = np.concatenate([rows, new_rows], axis=1)
        best = np.argsort(-score, axis=1, kind="stable")[:, : max(top_k)]
        return np.take_along_axis(score, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def _search_living(self, search: Search, top_k: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The bundle's best without the deleted ones.   -> (B, K), (B, K)"""
        spare = min(_SPARE, len(self.deleted_rows))
        asked = [count + spare for count in top_k]
        members = np.arange(len(top_k))
        score = np.full((len(top_k), max(top_k)), -np.inf, dtype=np.float32)
        rows = np.full(score.shape, -1, dtype=np.int64)
        while len(members):
            found_score, found_rows = search(members, asked)
            short = []
            for place, member in enumerate(members.tolist()):
                living = np.flatnonzero(is_allowed(found_rows[place], self.deleted_rows))[: top_k[member]]
                score[member, : len(living)] = found_score[place, living]
                rows[member, : len(living)] = found_rows[place, living]
                everything = (found_rows[place] >= 0).sum() < asked[place]
                if len(living) < top_k[member] and not everything:
                    short.append(place)
            members = members[short]
            asked = [asked[place] * _WIDEN_BY for place in short]
        return score, rows

    def _search_new(
        self, routes: np.ndarray, top_k: int, exclude: Sequence[np.ndarray | None] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best new items of each user.   routes: (B, R, D)   -> (B, K'), (B, K')"""
        queries = routes.reshape(-1, routes.shape[2])
        if self.metric == "inner_product":
            every = torch.mm(torch.from_numpy(queries), torch.from_numpy(self.embeddings).T).numpy()
        else:
            every = np.stack([exact_scores(self.embeddings, query, self.metric) for query in queries])
        score = every.reshape(*routes.shape[:2], -1).max(axis=1)  # (B, n)
        for member, rows in enumerate(exclude or ()):
            if rows is not None:
                score[member, rows] = -np.inf
        count = min(top_k, score.shape[1])
        best = np.argpartition(-score, count - 1, axis=1)[:, :count]
        score = np.take_along_axis(score, best, axis=1)
        return score, np.where(score > -np.inf, best + self.num_rows, -1)


def build_delta_index(delta: Delta, bundle: Bundle) -> DeltaIndex | None:
    """A delta as one bundle sees it: its own items win, new ones are embedded in its space.

    -> None when the bundle alone says it all
    """
    if not delta.items and not delta.deleted:
        return None
    new = [item for item_id, item in delta.items.items() if served_row(bundle, item_id) < 0]
    item_ids, embeddings = embed_new_items(new, bundle)
    dead = [served_row(bundle, item_id) for item_id in delta.deleted]
    return DeltaIndex(
        version=delta.version,
        item_ids=item_ids,
        row_of={item_id: row for row, item_id in enumerate(item_ids)},
        embeddings=embeddings,
        metric=bundle.index.metric,
        num_rows=bundle.index.num_items,
        deleted=frozenset(delta.deleted),
        deleted_rows=np.array(sorted(row for row in dead if row >= 0), dtype=np.int64),
        num_unplaced=len(new) - len(item_ids),
    )
