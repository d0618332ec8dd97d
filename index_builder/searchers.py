"""Where a search really runs: FAISS on the CPU or on a GPU; `milvus_search`: elsewhere. One method each.

`search` gives what the library gives: best first, row -1 where it found nothing, and no promise of K.
`index_builder.ann` makes the promises.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from index_builder.exact_search import MAX_SCORE, rescore
from index_builder.faiss_library import faiss, faiss_metric
from index_builder.gpu_index import MAX_FETCH, to_gpu
from index_builder.index_kinds import Kind
from index_builder.search_groups import MAX_FETCH_CPU
from model.two_tower import Metric


class SearchFailedError(OSError):
    """An index on other hosts gave no answer.   asked: false when it failed so lately that nobody asked it"""

    def __init__(self, reason: str, *, asked: bool = True) -> None:
        super().__init__(reason)
        self.asked = asked


class Searcher(Protocol):
    """masks: whether `search` can be told rows to skip   max_fetch: the most results per query
    max_width: beyond it a wider search finds nothing more
    """

    masks: bool
    max_fetch: int
    max_width: int

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `keep` of `fetch` candidates, or all of them where they are in order anyway.

        queries: (B, D)   skip: distinct rows, for the whole batch   -> scores (B, K), rows (B, K)
        """


class FlatSearcher:
    """Exhaustive, over embeddings that belong to somebody else: nothing is held twice."""

    masks = False
    max_fetch = MAX_FETCH_CPU
    max_width = 0

    def __init__(self, embeddings: np.ndarray, metric: Metric) -> None:
        self._embeddings, self._metric = embeddings, metric

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        assert skip is None
        values, rows = faiss.knn(queries, self._embeddings, fetch, metric=faiss_metric(self._metric))
        return _scores(values, self._metric), rows


class FaissSearcher:
    """A FAISS index on the CPU."""

    max_fetch = MAX_FETCH_CPU

    def __init__(self, index: Any, spec: Kind, metric: Metric) -> None:
        self._index, self._spec, self._metric = index, spec, metric
        self.masks = spec.masks
        self.max_width = spec.max_width(index)

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        queries, scale = self._spec.prepare(queries, self._index.d)
        parameters, _kept = self._parameters(fetch, width, skip)
        values, rows = self._index.search(queries, fetch, params=parameters)
        with np.errstate(over="ignore", invalid="ignore"):
            return _scores(values * scale, self._metric), rows

    def _parameters(self, fetch: int, width: int, skip: np.ndarray | None) -> tuple[Any, Any]:
        """What FAISS is to do, and what must live as long as that."""
        if skip is None:
            return self._spec.parameters(width, fetch, None), None
        skipped = _selector(skip, self._index.ntotal)
        selector = faiss.IDSelectorNot(skipped)
        return self._spec.parameters(width, fetch, selector), (skipped, selector)


class ListSearcher(FaissSearcher):
    """An inverted file on the CPU, whose lists are chosen here: FAISS takes four times as long for it."""

    def __init__(self, index: Any, spec: Kind, metric: Metric) -> None:
        super().__init__(index, spec, metric)
        quantizer = faiss.downcast_index(index.quantizer)
        centres = torch.from_numpy(quantizer.reconstruct_n(0, index.nlist))  # (L, D)
        self._centres = centres.T.contiguous()  # (D, L)
        self._half_squares = centres.square().sum(dim=1) / 2  # (L,)

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        queries, scale = self._spec.prepare(queries, self._index.d)
        lists, list_values = self._best_lists(queries, width)
        parameters, _kept = self._parameters(fetch, width, skip)
        values = np.empty((len(queries), fetch), dtype=np.float32)
        rows = np.empty((len(queries), fetch), dtype=np.int64)
        pointers = map(faiss.swig_ptr, (lists, list_values, values, rows))
        # the wrapper of this method takes no parameters
        self._index.search_preassigned_c(
            len(queries), faiss.swig_ptr(queries), fetch, *pointers, False, parameters
        )
        with np.errstate(over="ignore", invalid="ignore"):
            return _scores(values * scale, self._metric), rows

    def _best_lists(self, queries: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The lists to look at, best first, and FAISS's values of them.   (B, D) -> (B, W), (B, W)"""
        product = torch.from_numpy(queries) @ self._centres  # (B, L)
        cost = (self._half_squares - product if self._metric == "l2" else -product).numpy()  # least is best
        if width < cost.shape[1]:
            lists = np.argpartition(cost, width - 1, axis=1)[:, :width]
        else:
            lists = np.broadcast_to(np.arange(width), (len(cost), width))
        order = np.argsort(np.take_along_axis(cost, lists, axis=1), axis=1)
        lists = np.take_along_axis(lists, order, axis=1)
        values = -np.take_along_axis(cost, lists, axis=1)
        if self._metric == "l2":
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.einsum("bd,bd->b", queries, queries)[:, None] - 2 * values
        return np.ascontiguousarray(lists), np.ascontiguousarray(values, dtype=np.float32)


class RescoringSearcher:
    """Another searcher's candidates, in the order of their exact scores."""

    def __init__(self, inner: Searcher, embeddings: np.ndarray, metric: Metric) -> None:
        self._inner, self._metric = inner, metric
        self._items = torch.from_numpy(embeddings)  # the same memory
        self.masks, self.max_fetch, self.max_width = inner.masks, inner.max_fetch, inner.max_width

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        _, rows = self._inner.search(queries, fetch=fetch, keep=fetch, width=width, skip=skip)
        scores = rescore(self._items, queries, rows, self._metric)  # (B, F)
        scores[rows < 0] = -np.inf
        best, place = torch.from_numpy(scores).topk(min(keep, rows.shape[1]), dim=1)
        return best.numpy(), np.take_along_axis(rows, place.numpy(), axis=1)


class GpuSearcher:
    """A FAISS index on a GPU (not run). `IDSelector` is ignored there, so it says that it masks nothing."""

    masks = False
    max_fetch = MAX_FETCH

    def __init__(
        self, index: Any, embeddings: np.ndarray, spec: Kind, *, kind: str, metric: Metric, device: str
    ) -> None:
        self._spec, self._metric, self._kind = spec, metric, kind
        self.max_width = min(spec.max_width(index), MAX_FETCH)
        self._index, self._resources = to_gpu(index, embeddings, kind=kind, metric=metric, device=device)

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        assert skip is None
        queries, scale = self._spec.prepare(queries, self._index.d)
        values, rows = self._index.search(queries, fetch, params=self._parameters(width, fetch))
        with np.errstate(over="ignore", invalid="ignore"):
            return _scores(values * scale, self._metric), rows

    def _parameters(self, width: int, fetch: int) -> Any:
        if self._kind == "ivf_flat":
            return faiss.SearchParametersIVF(nprobe=width)
        if self._kind != "cagra":
            return None
        parameters = faiss.SearchParametersCagra()
        parameters.itopk_size = max(width, fetch)
        return parameters


def _selector(rows: np.ndarray, num_items: int) -> Any:
    """What says yes to `rows`: a hash set for a few, a bit for every item for many."""
    if len(rows) * 64 < num_items:
        return faiss.IDSelectorBatch(rows)
    bits = np.zeros(num_items, dtype=bool)
    bits[rows] = True
    return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))


def _scores(values: np.ndarray, metric: Metric) -> np.ndarray:
    """Larger is better, and finite."""
    if metric == "l2":
        values = 0.0 - values
    if np.isfinite(values).all():  # nearly always, and a sixth of the work
        return values
    return np.clip(np.nan_to_num(values, nan=-MAX_SCORE), -MAX_SCORE, MAX_SCORE)
