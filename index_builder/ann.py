"""FAISS behind one interface: every kind of index, the same promises. The only file that imports it.

A search always gives `top_k` distinct rows when that many are not excluded. FAISS alone does not: it
pads with -1 where a list or a graph ran dry and on overflow, the GPU indexes ignore `IDSelector`
silently, and one batch has one selector. So exclusions are over-fetched and dropped here, an
approximate index that came back short is searched wider, and what is still short is searched exactly.
How wide a query is searched depends on that query alone, never on who shares the batch.

A GPU index must stay on one thread, reads included; a CPU index may be searched from several.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# isort: split
import faiss as faiss_module  # after torch, always: the other order has crashed

from index_builder.exact_search import MAX_SCORE, Answer, exact_scores, search_exactly
from model.two_tower import Metric

faiss: Any = faiss_module  # its type stubs lag behind it

MAX_FLAT_ITEMS = 200_000
"""`auto` searches exhaustively up to this many items."""

FAISS_VERSION: str = faiss.__version__

_MAX_VALUE = 1e15  # an inverted file trained on squares that overflow crashes the process
_MAX_FETCH_CPU = 16_384  # beyond it one exact pass over the embeddings is no slower than a huge heap
_MAX_FETCH_GPU = 2_048  # FAISS's own limit for k, and for nprobe
_WIDEN_BY = 4
_REFINE_FACTOR = 8  # candidates rescored from full vectors, per result asked for
_LOGGER = logging.getLogger(__name__)


def build_index(
    embeddings: np.ndarray,
    *,
    kind: str = "auto",
    metric: Metric = "inner_product",
    device: str = "cpu",
    seed: int = 0,
) -> AnnIndex:
    """Index item embeddings; row m of them is row m of every answer.

    embeddings: (M, D) float32, kept by reference   kind: `auto` or one of KINDS
    Raises ValueError for an unknown kind, embeddings that are not finite, or too few to train on.
    """
    embeddings = _checked_embeddings(embeddings)
    num_items = len(embeddings)
    if kind == "auto":
        kind = "flat" if num_items <= MAX_FLAT_ITEMS else "ivf_flat"
    spec = _kind(kind)
    if num_items < spec.min_items:
        raise ValueError(
            f"index kind {kind!r} needs at least {spec.min_items} items to train on, got {num_items}: "
            "use 'flat', which is exact and fast at this size"
        )
    index = spec.make(embeddings, _faiss_metric(metric), seed)
    return AnnIndex(index, kind=kind, metric=metric, embeddings=embeddings, device=device)


def set_num_threads(count: int) -> None:
    """Let FAISS use `count` CPU threads per call (a process-wide setting of OpenMP's)."""
    if count < 1:
        raise ValueError(f"FAISS needs at least 1 thread, got {count}")
    faiss.omp_set_num_threads(count)


def num_gpus() -> int:
    """How many GPUs FAISS can use: none without its GPU build."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def ann_overlap(index: AnnIndex, embeddings: np.ndarray, queries: np.ndarray, top_k: int = 100) -> float:
    """The share of the exact top K that `index` finds, averaged over queries; ties with the last count.

    embeddings: (M, D)   queries: (B, D), at least one   -> 0..1
    """
    if len(queries) == 0:
        raise ValueError("ann_overlap needs at least one query, got none")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    top_k = min(top_k, len(embeddings))
    values, _ = faiss.knn(queries, embeddings, top_k, metric=_faiss_metric(index.metric))
    last_score = values[:, -1] if index.metric == "inner_product" else -values[:, -1]  # (B,) at rank K
    rounding = _rounding_error(embeddings, queries, index.metric)  # (B,)
    _, rows = index.search(queries, top_k)
    hits = 0
    for query, found, needed in zip(queries, rows, last_score - rounding, strict=True):
        hits += int((exact_scores(embeddings[found[found >= 0]], query, index.metric) >= needed).sum())
    return hits / (len(queries) * top_k)


def _rounding_error(embeddings: np.ndarray, queries: np.ndarray, metric: Metric) -> np.ndarray:
    """By how much two float32 evaluations of one score may differ.   -> (B,)"""
    largest = float(np.linalg.norm(embeddings, axis=1).max())
    norms = np.linalg.norm(queries, axis=1)
    return 1e-6 * (norms * largest if metric == "inner_product" else (norms + largest) ** 2)


class AnnIndex:
    """A searchable set of item embeddings.

    kind: one of KINDS   metric: how embeddings are compared   device: where it really runs
    num_items: M   dim: D   width: how much of an approximate index a query visits; 0 for exhaustive kinds
    """

    def __init__(
        self, index: Any, *, kind: str, metric: Metric, embeddings: np.ndarray, device: str = "cpu"
    ) -> None:
        self._spec = _kind(kind)
        self._embeddings = _checked_embeddings(embeddings)
        self.kind = kind
        self.metric = metric
        self.num_items, self.dim = self._embeddings.shape
        if (index.ntotal, index.d) != (self.num_items, self.dim):
            raise ValueError(
                f"the index holds {index.ntotal} vectors of {index.d} dimensions, "
                f"the embeddings are {self.num_items} of {self.dim}"
            )
        if index.metric_type != _faiss_metric(metric):
            raise ValueError(f"the index does not compare by {metric}")
        self.device = _usable_device(device, self._spec, kind)
        self.width = self._spec.get_width(index)
        self._max_width = self._spec.max_width(index)
        self._max_fetch = _MAX_FETCH_CPU
        self._index, self._resources = index, None
        if self.device != "cpu":
            self._index, self._resources = _to_gpu(index, self._embeddings, kind, self.device)
            self._max_fetch = _MAX_FETCH_GPU
            self._max_width = min(self._max_width, _MAX_FETCH_GPU)

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
        excluded = self._checked_exclusions(exclude, len(queries))
        fetch = np.array([self._fetch_size(k + len(out)) for k, out in zip(wanted, excluded, strict=True)])
        answer = Answer.empty(wanted, excluded, self.num_items)
        for size in np.unique(fetch):
            members = np.flatnonzero(fetch == size)
            if size <= self._max_fetch:
                members = self._search_widening(queries, members, int(size), answer)
            for member in members.tolist():
                scores, rows = search_exactly(
                    self._embeddings,
                    queries[member],
                    self.metric,
                    top_k=int(wanted[member]),
                    excluded=excluded[member],
                )
                answer.put(member, scores, rows)
        return answer.scores, answer.rows

    def tune(self, queries: np.ndarray, *, target_overlap: float = 0.99, top_k: int = 100) -> float:
        """Double the width until the overlap on `queries` (B, D) reaches the target; returns the overlap."""
        overlap = ann_overlap(self, self._embeddings, queries, top_k)
        while overlap < target_overlap and self.width < self._max_width:
            self.width = min(self.width * 2, self._max_width)
            overlap = ann_overlap(self, self._embeddings, queries, top_k)
        return overlap

    def save(self, path: Path) -> None:
        """Write the index, its width included, as a FAISS file."""
        faiss.write_index(self._cpu_index(), str(path))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return faiss.serialize_index(self._cpu_index()).tobytes()

    @classmethod
    def from_bytes(
        cls, data: bytes, *, kind: str, metric: Metric, embeddings: np.ndarray, device: str = "cpu"
    ) -> AnnIndex:
        """The inverse of `to_bytes`. FAISS has no checksums: verify `data` before it comes here.

        Raises ValueError when it is no index, or not the index of these embeddings.
        """
        try:
            index = faiss.read_index(faiss.PyCallbackIOReader(io.BytesIO(data).read))
        except RuntimeError as error:
            raise ValueError(f"FAISS cannot read the index: {str(error)[:200]}") from error
        if not isinstance(index, _kind(kind).faiss_class):
            raise ValueError(f"the index is a {type(index).__name__}, which is not kind {kind!r}")
        return cls(index, kind=kind, metric=metric, embeddings=embeddings, device=device)

    def _search_widening(
        self, queries: np.ndarray, members: np.ndarray, fetch: int, answer: Answer
    ) -> np.ndarray:
        """Search, wider and wider where an answer came back short; returns the members still short."""
        width = self.width
        while len(members):
            scores, rows = self._search_faiss(queries[members], fetch, width)
            filled = [answer.put(member, scores[i], rows[i]) for i, member in enumerate(members.tolist())]
            members = members[~np.array(filled)]
            if width >= self._max_width:
                break
            width = min(width * _WIDEN_BY, self._max_width)
        return members

    def _search_faiss(self, queries: np.ndarray, fetch: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's own answer.   -> scores (B, fetch), rows (B, fetch), -1 where it found nothing"""
        parameters = self._spec.parameters(width, fetch)
        values, rows = self._index.search(queries, fetch, params=parameters)
        if self.metric == "l2":
            values = 0.0 - values
        return np.clip(values, -MAX_SCORE, MAX_SCORE), rows

    def _fetch_size(self, count: int) -> int:
        """A power of two, so that a batch falls into few groups and a query's width is its own."""
        return min(max(16, 1 << (int(count) - 1).bit_length()), self.num_items)

    def _cpu_index(self) -> Any:
        index = self._index
        if self.device != "cpu":
            if self.kind == "flat_fp16":
                return self._spec.make(self._embeddings, _faiss_metric(self.metric), 0)
            index = faiss.index_gpu_to_cpu(index)
        self._spec.set_width(index, self.width)
        return index

    def _checked_queries(self, queries: np.ndarray) -> np.ndarray:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"queries must be (B, {self.dim}), got shape {queries.shape}")
        bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        if len(bad):
            raise ValueError(f"query {bad[0]} holds NaN or infinity: the user embedding is broken")
        return queries

    def _checked_exclusions(
        self, exclude: Sequence[np.ndarray | None] | None, batch_size: int
    ) -> list[np.ndarray]:
        none = np.empty(0, dtype=np.int64)
        if exclude is None:
            return [none] * batch_size
        if len(exclude) != batch_size:
            raise ValueError(f"exclude must have one entry per query, got {len(exclude)} for {batch_size}")
        excluded = []
        for rows in exclude:
            rows = none if rows is None else np.unique(np.asarray(rows, dtype=np.int64))
            excluded.append(rows[(rows >= 0) & (rows < self.num_items)])
        return excluded


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
    wanted = np.broadcast_to(np.asarray(top_k, dtype=np.int64), (batch_size,))
    if batch_size and wanted.min() < 1:
        raise ValueError(f"top_k must be at least 1, got {wanted.min()}")
    return wanted


def _faiss_metric(metric: Metric) -> int:
    if metric == "inner_product":
        return faiss.METRIC_INNER_PRODUCT
    if metric == "l2":
        return faiss.METRIC_L2
    raise ValueError(f"metric must be inner_product or l2, got {metric!r}")


# --- the kinds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How one kind of index is made, and how wide a query is searched in it."""

    make: Callable[[np.ndarray, int, int], Any]  # (embeddings, FAISS metric, seed) -> FAISS index
    faiss_class: type
    on_gpu: bool = False
    min_items: int = 1
    get_width: Callable[[Any], int] = lambda index: 0
    set_width: Callable[[Any, int], None] = lambda index, width: None
    max_width: Callable[[Any], int] = lambda index: 0
    parameters: Callable[[int, int], Any] = lambda width, fetch: None  # (width, fetch) -> search parameters


def _make_flat(embeddings: np.ndarray, metric: int, seed: int) -> Any:
    index = faiss.IndexFlat(embeddings.shape[1], metric)
    index.add(embeddings)
    return index


def _make_flat_fp16(embeddings: np.ndarray, metric: int, seed: int) -> Any:
    largest = max(float(embeddings.max()), -float(embeddings.min()))
    if largest > np.finfo(np.float16).max:
        raise ValueError(f"index kind 'flat_fp16' cannot hold a value of {largest:.3g}: use 'flat'")
    index = faiss.IndexScalarQuantizer(embeddings.shape[1], faiss.ScalarQuantizer.QT_fp16, metric)
    index.train(embeddings)
    index.add(embeddings)
    return index


def _make_ivf_flat(embeddings: np.ndarray, metric: int, seed: int) -> Any:
    dim, num_lists = embeddings.shape[1], _num_lists(len(embeddings))
    index = faiss.IndexIVFFlat(faiss.IndexFlat(dim, metric), dim, num_lists, metric)
    return _train_ivf(index, index, embeddings, seed)


def _make_ivf_pq_fs(embeddings: np.ndarray, metric: int, seed: int) -> Any:
    dim, num_lists = embeddings.shape[1], _num_lists(len(embeddings))
    num_parts = dim // 2 if dim % 2 == 0 else dim  # two dimensions to each 4-bit code
    ivf = faiss.IndexIVFPQFastScan(faiss.IndexFlat(dim, metric), dim, num_lists, num_parts, 4, metric)
    ivf.pq.cp.seed = seed
    ivf.pq.cp.min_points_per_centroid = 1
    refined = faiss.IndexRefineFlat(ivf)
    refined.k_factor = _REFINE_FACTOR
    return _train_ivf(refined, ivf, embeddings, seed)


def _train_ivf(index: Any, ivf: Any, embeddings: np.ndarray, seed: int) -> Any:
    ivf.cp.seed = seed
    ivf.cp.min_points_per_centroid = 1  # the number of lists is chosen from M; no warning needed
    ivf.nprobe = min(8, ivf.nlist)
    index.train(embeddings)
    index.add(embeddings)
    return index


def _make_hnsw(embeddings: np.ndarray, metric: int, seed: int) -> Any:
    index = faiss.IndexHNSWFlat(embeddings.shape[1], 32, metric)
    index.hnsw.rng = faiss.RandomGenerator(seed)
    index.hnsw.efConstruction = 200
    index.hnsw.efSearch = 128
    index.add(embeddings)
    return index


def _num_lists(num_items: int) -> int:
    """About 4·√M lists, each with enough items to find its centre from."""
    return max(1, min(int(4 * num_items**0.5), num_items // 39))


def _inverted_file(index: Any) -> Any:
    """The IVF inside, under the refinement where there is one."""
    return faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefineFlat) else index


def _set_nprobe(index: Any, width: int) -> None:
    _inverted_file(index).nprobe = width


def _set_ef_search(index: Any, width: int) -> None:
    index.hnsw.efSearch = width


def _refine_parameters(width: int, fetch: int) -> Any:
    inner = faiss.SearchParametersIVF(nprobe=width)
    return faiss.IndexRefineSearchParameters(k_factor=_REFINE_FACTOR, base_index_params=inner)


KINDS: dict[str, _Kind] = {
    "flat": _Kind(_make_flat, faiss.IndexFlat, on_gpu=True),
    "flat_fp16": _Kind(_make_flat_fp16, faiss.IndexScalarQuantizer, on_gpu=True),
    "ivf_flat": _Kind(
        _make_ivf_flat,
        faiss.IndexIVFFlat,
        on_gpu=True,
        get_width=lambda index: index.nprobe,
        set_width=_set_nprobe,
        max_width=lambda index: index.nlist,
        parameters=lambda width, fetch: faiss.SearchParametersIVF(nprobe=width),
    ),
    "hnsw": _Kind(
        _make_hnsw,
        faiss.IndexHNSWFlat,
        get_width=lambda index: index.hnsw.efSearch,
        set_width=_set_ef_search,
        max_width=lambda index: max(index.hnsw.efSearch, min(index.ntotal, 4_096)),
        parameters=lambda width, fetch: faiss.SearchParametersHNSW(efSearch=max(width, fetch)),
    ),
    "ivf_pq_fs": _Kind(
        _make_ivf_pq_fs,
        faiss.IndexRefineFlat,
        min_items=256,
        get_width=lambda index: _inverted_file(index).nprobe,
        set_width=_set_nprobe,
        max_width=lambda index: _inverted_file(index).nlist,
        parameters=_refine_parameters,
    ),
}
"""Exact: `flat`, and `flat_fp16` at half the memory. Approximate: `ivf_flat`, `hnsw`, `ivf_pq_fs`."""


def _kind(name: str) -> _Kind:
    if name not in KINDS:
        raise ValueError(f"index kind must be auto or one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]


# --- the GPU -----------------------------------------------------------------------------------


def _usable_device(device: str, spec: _Kind, kind: str) -> str:
    """`device`, or the CPU with a warning that says why."""
    asked = torch.device(device)
    if asked.type == "cpu":
        return "cpu"
    if asked.type != "cuda":
        raise ValueError(f"the index runs on cpu or cuda, got device {device!r}")
    if not hasattr(faiss, "StandardGpuResources"):
        reason = "this FAISS has no GPU support (the extra [gpu] in place of [cpu] brings it)"
    elif num_gpus() <= (asked.index or 0):
        reason = f"FAISS sees {num_gpus()} GPUs"
    elif not spec.on_gpu:
        reason = f"index kind {kind!r} exists on the CPU only"
    else:
        return f"cuda:{asked.index or 0}"
    _LOGGER.warning("device %s was asked for, the index runs on the CPU: %s", device, reason)
    return "cpu"


def _to_gpu(index: Any, embeddings: np.ndarray, kind: str, device: str) -> tuple[Any, Any]:
    """The index on the GPU and the resources it lives from."""
    resources = faiss.StandardGpuResources()
    options = faiss.GpuClonerOptions()
    if kind == "flat_fp16":
        options.useFloat16 = True
        index = _make_flat(embeddings, index.metric_type, 0)
    return faiss.index_cpu_to_gpu(resources, torch.device(device).index, index, options), resources
