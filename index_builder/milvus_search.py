"""A collection in Milvus as one of the `searchers`: bounded in time, and left alone while it fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from index_builder.exact_search import MAX_SCORE
from index_builder.milvus_access import MilvusAccess
from index_builder.milvus_corpus import Corpus, connect
from index_builder.searchers import SearchFailedError

if TYPE_CHECKING:
    from index_builder.milvus_index import Milvus

_MAX_FETCH = 16_384
"""Milvus's own limit for a search."""
_PATIENCE_S = 60.0
_COOLDOWN_S = 0.5
_LOAD_S = 5.0


@dataclass
class _Outage:
    """until: on `time.monotonic`, before it nobody asks"""

    until: float = 0.0
    reason: str = ""
    loading: Thread | None = None


@dataclass(frozen=True)
class MilvusSearcher:
    """One collection.

    timeout_s: of one call   until: on `time.monotonic`, when the whole search must have ended
    """

    milvus: Milvus
    corpus: Corpus
    outage: _Outage
    timeout_s: float = _PATIENCE_S
    until: float = float("inf")

    masks = True  # a filter that names 1,000 rows took a third of the time of a fetch of as many more
    max_fetch = _MAX_FETCH

    @property
    def max_width(self) -> int:
        """Every list; 0 where there are none."""
        return self.corpus.num_lists

    def within(self, timeout_s: float, until: float) -> MilvusSearcher:
        """The same with less time; what one of them learns about an outage holds for all."""
        return replace(self, timeout_s=min(timeout_s, _PATIENCE_S), until=until)

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raises SearchFailedError when the server does not answer in time, or was found failing just now."""
        now = time.monotonic()
        if now < self.outage.until:
            raise SearchFailedError(f"left alone for a moment: {self.outage.reason}", asked=False)
        timeout_s = min(self.timeout_s, self.until - now)
        if timeout_s <= 0:
            raise SearchFailedError("no time is left to ask Milvus", asked=False)
        params = {"nprobe": min(width, self.max_width)} if self.max_width else {}
        try:
            found = self.milvus.search(
                self.corpus.collection,
                queries,
                limit=fetch,
                params=params,
                skip=[] if skip is None else skip.tolist(),
                timeout_s=timeout_s,
            )
        except OSError as error:
            self.outage.reason, self.outage.until = str(error), time.monotonic() + _COOLDOWN_S
            self._load_again()
            raise SearchFailedError(str(error)) from error
        return _tidied(found, len(queries), fetch, self.corpus.num_items)

    def _load_again(self) -> None:
        """In a thread of its own: a server that was restarted may have forgotten what was loaded."""
        if self.outage.loading is not None and self.outage.loading.is_alive():
            return

        def load() -> None:
            with suppress(OSError):
                self.milvus.load(self.corpus.collection, timeout_s=_LOAD_S)

        self.outage.loading = Thread(target=load, name="milvus-load", daemon=True)
        self.outage.loading.start()


def open_searcher(corpus: Corpus, access: MilvusAccess) -> MilvusSearcher:
    """The searcher of a collection, checked. Raises ValueError or MilvusError when it is not as recorded."""
    milvus = connect(access, corpus.url)
    corpus.check(milvus)
    return MilvusSearcher(milvus, corpus, _Outage())


def _tidied(
    found: Sequence[tuple[Sequence[int], Sequence[float]]], batch_size: int, fetch: int, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of this corpus with numbers for scores, best first.

    found: per query rows and scores, as they came   -> scores (B, F), rows (B, F); -inf and -1 at the end
    """
    if len(found) != batch_size:
        raise SearchFailedError(f"Milvus answered {len(found)} of {batch_size} queries")
    scores = np.full((batch_size, fetch), -np.inf, dtype=np.float32)
    rows = np.full((batch_size, fetch), -1, dtype=np.int64)
    for query, (of_query, with_scores) in enumerate(found):
        some = np.asarray(of_query, dtype=np.int64)
        value = np.asarray(with_scores, dtype=np.float32)
        sound = np.flatnonzero(np.isfinite(value) & (some >= 0) & (some < num_items))
        order = sound[np.argsort(-value[sound], kind="stable")]
        _, first = np.unique(some[order], return_index=True)
        order = order[np.sort(first)][:fetch]
        scores[query, : len(order)] = np.clip(value[order], -MAX_SCORE, MAX_SCORE)
        rows[query, : len(order)] = some[order]
    return scores, rows
