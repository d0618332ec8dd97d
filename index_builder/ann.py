"""Every kind of index behind one interface, with the same promises.

A search always gives `top_k` distinct rows when that many are not excluded. The libraries alone do not:
FAISS pads with -1 where a list or a graph ran dry and on overflow, its GPU indexes ignore `IDSelector`
silently, and one batch has one selector. So a few exclusions are over-fetched and dropped here, many are
masked where the engine can, an approximate index that came back short is searched wider, and what is still
short is searched exactly. How wide a query is searched depends on that query alone, never on who shares
the batch.

A GPU index must stay on one thread, reads included; a CPU index may be searched from several.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index_builder.exact_search import search_exactly
from index_builder.faiss_library import FAISS_VERSION, faiss, faiss_metric, num_gpus, set_num_threads
from index_builder.gpu_index import usable_device
from index_builder.index_choice import choose_kind
from index_builder.index_kinds import KINDS, REMOTE, find_kind, read_index_file
from index_builder.native_exact import native_exact
from index_builder.native_lists import native_lists
from index_builder.search_groups import Answer, Exclusions, Group, check_entries
from index_builder.searchers import (
    FaissSearcher,
    FlatSearcher,
    GpuSearcher,
    ListSearcher,
    RescoringSearcher,
    Searcher,
    SearchFailedError,
)
from index_builder.torch_search import TorchSearch
from model.two_tower import Metric

if TYPE_CHECKING:
    from index_builder.milvus_corpus import Corpus
    from index_builder.milvus_search import MilvusSearcher

__all__ = [
    "FAISS_VERSION",
    "KINDS",
    "AnnIndex",
    "SearchFailedError",
    "build_index",
    "num_gpus",
    "remote_index",
    "set_num_threads",
]

_MAX_VALUE = 1e15  # an inverted file trained on squares that overflow crashes the process
_WIDEN_BY = 4
_MAX_OVERFETCH = 1_024  # more exclusions than this are masked, where the engine can mask
_SMALL, _TOGETHER = 16_384, 8
"""Up to _SMALL items, all is looked at in one native call: faster than FAISS for every batch
(`loadtest/results/2026-11-22-native-exact.md`). Where that was not built, for _TOGETHER queries or more one
matrix product with the exclusions masked in it beats FAISS.
"""
_REMOTE_WIDTH = 16  # before it is tuned
_MAX_EXACT_ITEMS = 1_000_000
"""Up to so many items, what came back short from elsewhere is searched in the bundle's own embeddings."""
_TUNED_TOP_K = 100
"""What `width` is tuned for. The width needed grew with the third root of K: 88 lists for 100 results, 192
for 1,000, 240 for 2,000 (100K items like trained ones, overlap 0.99). Excluded rows count as results."""


def build_index(
    embeddings: np.ndarray,
    *,
    kind: str = "auto",
    metric: Metric = "inner_product",
    device: str = "cpu",
    target_overlap: float = 0.99,
    seed: int = 0,
) -> AnnIndex:
    """Index item embeddings; row m of them is row m of every answer.

    embeddings: (M, D) float32, kept by reference   kind: one of KINDS, or `auto`, which looks M, `device`
    and `target_overlap` up in the measured table of `index_choice`
    Raises ValueError for an unknown kind, embeddings that are not finite, or too few to train on.
    """
    embeddings = _checked_embeddings(embeddings)
    num_items = len(embeddings)
    if kind == "auto":
        kind = choose_kind(num_items, device=device, target_overlap=target_overlap)
    spec = find_kind(kind)
    if spec is REMOTE:
        raise ValueError(f"index kind {kind!r} is not made here: `t2diff-index build` and `nightly` know it")
    if num_items < spec.min_items:
        raise ValueError(
            f"index kind {kind!r} needs at least {spec.min_items} items to train on, got {num_items}: "
            "use 'flat', which is exact and fast at this size"
        )
    faiss_metric(metric)  # refuses one that nobody knows, before minutes of training
    index = spec.make(embeddings, metric, seed)
    return AnnIndex(index, kind=kind, metric=metric, embeddings=embeddings, device=device)


def remote_index(embeddings: np.ndarray, searcher: MilvusSearcher) -> AnnIndex:
    """The index of embeddings that `searcher` searches elsewhere, not tuned yet.   embeddings: (M, D)"""
    return AnnIndex(
        REMOTE.make(embeddings, "inner_product", 0),
        kind="milvus",
        metric="inner_product",
        embeddings=embeddings,
        searcher=searcher,
        width=min(_REMOTE_WIDTH, searcher.max_width),
    )


class AnnIndex:
    """A searchable set of item embeddings.

    kind: one of KINDS   metric: how embeddings are compared   device: where it really runs
    num_items: M   dim: D   width: how much of an approximate index a query visits; 0 for exhaustive kinds
    rescored: candidates that get an exact score, per result asked for; 0 where the index's scores stand
    holds_items: false when the item embeddings themselves are searched   embeddings: (M, D) those
    """

    def __init__(
        self,
        index: Any,
        *,
        kind: str,
        metric: Metric,
        embeddings: np.ndarray,
        device: str = "cpu",
        rescored: int | None = None,
        searcher: MilvusSearcher | None = None,
        width: int | None = None,
    ) -> None:
        """searcher: of a kind that is searched elsewhere   width: in place of the index's own"""
        self._spec = find_kind(kind)
        self.kind = kind
        self.metric = metric
        self.holds_items = self._spec.holds_items
        self.num_items, self.dim = embeddings.shape
        self._check_fit(index)
        self.device = usable_device(device, kind, on_gpu=self._spec.on_gpu)
        self.width = self._spec.get_width(index) if width is None else width
        self.rescored = self._spec.rescored if rescored is None else rescored
        self._index = index
        self.embeddings = embeddings
        self._torch = TorchSearch(embeddings, metric, self.device) if kind == "torch" else None
        small = kind == "flat" and self.num_items <= _SMALL and self.device == "cpu"
        self._native = native_exact(embeddings, metric) if small else None
        self._product = TorchSearch(embeddings, metric) if small and metric == "inner_product" else None
        if (searcher is None) == (self._spec is REMOTE):
            raise ValueError(f"index kind {kind!r} and a search of {searcher} do not go together")
        self._remote = searcher
        self._searcher: Searcher = searcher or self._make_searcher()

    def search(
        self,
        queries: np.ndarray,
        top_k: int | Sequence[int],
        exclude: Sequence[np.ndarray | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best rows of each query, best first.

        queries: (B, D) float32   top_k: K, or one per query (the answer is as wide as the largest)
        exclude: per query the rows never to return, or None; rows that do not exist are ignored
        -> scores (B, K) float32, larger is better; rows (B, K) int64. Where fewer than K items are left
        after the exclusions, the end of the answer is row -1 with score -inf.
        Raises ValueError for queries of another shape or with NaN or infinity in them.
        """
        queries = self._checked_queries(queries)
        wanted = _checked_top_k(top_k, len(queries))  # (B,)
        check_entries(exclude, len(queries))
        if self._native is not None:
            return self._native.search(queries, wanted, exclude)
        excluded = Exclusions(exclude, len(queries), self.num_items)
        product = self._product if self._torch is None and len(queries) >= _TOGETHER else self._torch
        if product is not None:
            scores, rows = product.search(queries, int(wanted.max(initial=0)), excluded)
            unasked = np.arange(scores.shape[1]) >= wanted[:, None]  # (B, K)
            scores[unasked], rows[unasked] = -np.inf, -1
            return scores, rows
        answer = Answer(wanted)
        for group in self._plan(wanted, excluded):
            short = group.members
            if group.fetch <= self._searcher.max_fetch:
                short = self._search_widening(group, queries, wanted, excluded, answer)
            for member in short.tolist():
                answer.put(
                    member, *self._search_exactly(queries[member], wanted[member], excluded.of(member))
                )
        return answer.scores, answer.rows

    def within(self, timeout_s: float, until: float) -> AnnIndex:
        """This index with less time for a search that leaves the process; the others never wait.

        timeout_s: of one call   until: on `time.monotonic`
        Such a search raises SearchFailedError when there is no answer in time.
        """
        if self._remote is None:
            return self
        hurried = copy.copy(self)
        hurried._searcher = hurried._remote = self._remote.within(timeout_s, until)
        return hurried

    @property
    def corpus(self) -> Corpus | None:
        """The collection that is searched, where that lies elsewhere."""
        return None if self._remote is None else self._remote.corpus

    @property
    def exact(self) -> bool:
        """Whether no neighbour is ever missed."""
        return self._spec.exact

    @property
    def max_width(self) -> int:
        """Beyond it nothing more is found."""
        return self._searcher.max_width

    def save(self, path: Path) -> None:
        """Write the index, its width included, as a FAISS file.

        Kinds that search the bundle's item embeddings leave those out of it.
        """
        self._spec.set_width(self._index, self.width)
        faiss.write_index(self._index, str(path))

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        kind: str,
        metric: Metric,
        embeddings: np.ndarray,
        device: str = "cpu",
        rescored: int | None = None,
        searcher: MilvusSearcher | None = None,
        width: int | None = None,
    ) -> AnnIndex:
        """The inverse of `save`, mapped from the file where FAISS can. Verify the file before.

        embeddings: (M, D) those that it was built from; they are not read here, and may be mapped too
        searcher, width: as of `remote_index`
        Raises ValueError when the file is no index, or not the index of these embeddings.
        """
        index = read_index_file(path, kind)
        return cls(
            index,
            kind=kind,
            metric=metric,
            embeddings=embeddings,
            device=device,
            rescored=rescored,
            searcher=searcher,
            width=width,
        )

    def _make_searcher(self) -> Searcher:
        if self.device != "cpu" and self._torch is None:
            return GpuSearcher(
                self._index,
                self.embeddings,
                self._spec,
                kind=self.kind,
                metric=self.metric,
                device=self.device,
            )
        if not self._spec.holds_items and self._spec.exact:
            return FlatSearcher(self.embeddings, self.metric)
        native = native_lists(self._index, self.embeddings, self.metric) if self._spec.native else None
        if native is not None:
            return native
        searcher_class = ListSearcher if self.kind.startswith("ivf") else FaissSearcher
        searcher = searcher_class(self._index, self._spec, self.metric)
        return RescoringSearcher(searcher, self.embeddings, self.metric) if self._spec.rescored else searcher

    def _plan(self, wanted: np.ndarray, excluded: Exclusions) -> list[Group]:
        """Which queries are searched together. One that is masked is alone: a search has one mask."""
        together: dict[tuple[int, int], list[int]] = {}
        plan = []
        for member, (top_k, num_out) in enumerate(
            zip(wanted.tolist(), excluded.counts.tolist(), strict=True)
        ):
            candidates, width = top_k * max(1, self.rescored), self._width_for(top_k + num_out)
            if num_out > _MAX_OVERFETCH and self._searcher.masks and 2 * num_out < self.num_items:
                fetch = self._fetch_size(2 * candidates)  # far down, codes tell items apart less well
                skip = excluded.of(member)
                plan.append(Group(fetch, top_k, width, np.array([member]), skip=skip))
            else:
                key = (self._fetch_size(candidates + num_out), width)
                together.setdefault(key, []).append(member)
        for (fetch, width), members in together.items():
            keep = int((wanted[members] + excluded.counts[members]).max())
            plan.append(Group(fetch, min(keep, fetch), width, np.array(members)))
        return plan

    def _width_for(self, count: int) -> int:
        """The width that finds as much of the best `count` as `width` finds of the best 100."""
        if not self.width:
            return 0
        ratio = self._fetch_size(count) / self._fetch_size(_TUNED_TOP_K)
        return min(
            math.ceil(self.width * max(1.0, ratio) ** (1 / 3)), max(self.width, self._searcher.max_width)
        )

    def _search_widening(
        self,
        group: Group,
        queries: np.ndarray,
        wanted: np.ndarray,
        excluded: Exclusions,
        answer: Answer,
    ) -> np.ndarray:
        """Search, wider and wider where an answer came back short; returns the members still short."""
        members, width = group.members, group.width
        while len(members):
            scores, rows = self._searcher.search(
                queries[members], fetch=group.fetch, keep=group.keep, width=width, skip=group.skip
            )
            num_found = answer.put_allowed(members, scores, rows, excluded.allowed(members, rows))
            enough = np.minimum(wanted[members], self.num_items - excluded.counts[members])
            members = members[num_found < enough]
            if width >= self._searcher.max_width:
                break
            width = min(width * _WIDEN_BY, self._searcher.max_width)
        return members

    def _search_exactly(
        self, query: np.ndarray, top_k: int, excluded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self._remote is not None and self.num_items > _MAX_EXACT_ITEMS:
            raise SearchFailedError(f"fewer than {top_k} results came back")
        return search_exactly(self.embeddings, query, self.metric, top_k=int(top_k), excluded=excluded)

    def _fetch_size(self, count: int) -> int:
        """Rounded up by less than a quarter, so that a batch falls into few groups."""
        step = max(4, 1 << max(0, int(count - 1).bit_length() - 3))
        return min(max(16, -(-int(count) // step) * step), self.num_items)

    def _check_fit(self, index: Any) -> None:
        held = self.num_items if self._spec.holds_items else 0
        dim, number = self._spec.form(self.dim, self.metric)
        if (index.ntotal, index.d) != (held, dim):
            raise ValueError(
                f"the index holds {index.ntotal} vectors of {index.d} dimensions, kind {self.kind!r} of "
                f"{self.num_items} embeddings of {self.dim} holds {held} of {dim}"
            )
        if index.metric_type != number:
            raise ValueError(f"the index does not compare by {self.metric}")

    def _checked_queries(self, queries: np.ndarray) -> np.ndarray:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must be (B, {self.dim}), got shape {queries.shape}")
        finite = np.isfinite(queries)
        if not finite.all():
            bad = np.flatnonzero(~finite.all(axis=1))
            raise ValueError(f"query {bad[0]} holds NaN or infinity: the user embedding is broken")
        return queries


def _checked_embeddings(embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"embeddings must be (M, D) with at least one item, got shape {embeddings.shape}")
    largest = max(float(embeddings.max()), -float(embeddings.min()))  # NaN when one is there
    if not np.isfinite(largest):
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        raise ValueError(f"embeddings of {len(bad)} items hold NaN or infinity, the first is row {bad[0]}")
    if largest > _MAX_VALUE:
        raise ValueError(f"embeddings hold a value of {largest:.3g}: FAISS breaks when squares overflow")
    return embeddings


def _checked_top_k(top_k: int | Sequence[int], batch_size: int) -> np.ndarray:
    wanted = np.asarray(top_k, dtype=np.int64)
    if wanted.shape != (batch_size,):
        wanted = np.broadcast_to(wanted, (batch_size,))
    if batch_size and wanted.min() < 1:
        raise ValueError(f"top_k must be at least 1, got {wanted.min()}")
    return wanted
