"""A collection in Milvus as one of the `searchers`: bounded in time, and left alone while it fails."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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


class MilvusSearcher:
    """One collection.   max_width: every list; 0 where there are none"""

    masks = True  # a filter that names 1,000 rows took a third of the time of a fetch of as many more
    max_fetch = _MAX_FETCH

    def __init__(self, milvus: Milvus, corpus: Corpus) -> None:
        """corpus: checked"""
        self.corpus = corpus
        self.max_width = corpus.num_lists
        self._milvus = milvus
        self._outage = _Outage()
        self._timeout_s, self._until = _PATIENCE_S, math.inf

    def within(self, timeout_s: float, until: float) -> MilvusSearcher:
        """The same with less time; what one of them learns about an outage holds for all.

        timeout_s: of one call   until: on `time.monotonic`, when the whole search must have ended
        """
        hurried = copy.copy(self)
        hurried._timeout_s, hurried._until = min(timeout_s, _PATIENCE_S), until
        return hurried

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raises SearchFailedError when the server does not answer in time, or was found failing just now."""
        now = time.monotonic()
        if now < self._outage.until:
            raise SearchFailedError(f"left alone for a moment: {self._outage.reason}", asked=False)
        timeout_s = min(self._timeout_s, self._until - now)
        if timeout_s <= 0:
            raise SearchFailedError("no time is left to ask Milvus", asked=False)
        params = {"nprobe": min(width, self.max_width)} if self.max_width else {}
        try:
            found = self._milvus.search(
                self.corpus.collection,
                queries,
                limit=fetch,
                params=params,
                skip=[] if skip is None else skip.tolist(),
                timeout_s=timeout_s,
            )
        except OSError as error:
            failed = time.monotonic()
            if failed < self._until:  # else it may be the caller's haste: no reason to send others away
                self._outage.reason, self._outage.until = str(error), failed + _COOLDOWN_S
            self._load_again()
            raise SearchFailedError(str(error)) from error
        return _tidied(found, len(queries), fetch, self.corpus.num_items)

    def _load_again(self) -> None:
        """In a thread of its own: a server that was restarted may have forgotten what was loaded."""
        if self._outage.loading is not None and self._outage.loading.is_alive():
            return

        def load() -> None:
            with suppress(OSError):
                self._milvus.load(self.corpus.collection, timeout_s=_LOAD_S)

        self._outage.loading = Thread(target=load, name="milvus-load", daemon=True)
        self._outage.loading.start()


def open_searcher(corpus: Corpus, access: MilvusAccess) -> MilvusSearcher:
    """The searcher of a collection, checked. Raises ValueError or MilvusError when it is not as recorded."""
    milvus = connect(access, corpus.url)
    corpus.check(milvus)
    return MilvusSearcher(milvus, corpus)


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
