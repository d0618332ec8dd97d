"""The kinds of index that FAISS makes: how each is trained, how wide it is searched, what it can mask.

No kind holds vectors that the bundle holds already: `flat` searches the bundle's own item embeddings, and
`ivf_pq_fs` keeps 4-bit codes and takes exact scores of its best candidates from those embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.faiss_library import faiss, faiss_metric, has_cagra
from index_builder.gpu_index import make_cagra
from index_builder.inner_product_graph import graph_queries, make_hnsw
from index_builder.inverted_lists import extended_queries, fill_inverted_file, index_dim, list_count
from model.two_tower import Metric


@dataclass(frozen=True)
class Kind:
    """How one kind of index is made, and how wide a query is searched in it.

    make: (embeddings (M, D), metric, seed) -> FAISS index   holds_items: false when it searches the
    bundle's embeddings   rescored: candidates that get exact scores, per result asked for; 0 when the
    index's own scores stand   masks: whether it can skip rows   native: whether `native_lists` can search it
    form: (D, metric) -> dimension and FAISS
    metric of the index   prepare: (queries (B, D), dimension of the
    index) -> queries as the index takes them, and what its scores must be multiplied by, (B, 1) or 1
    """

    make: Callable[[np.ndarray, Metric, int], Any]
    faiss_class: type
    exact: bool = False
    holds_items: bool = True
    rescored: int = 0
    masks: bool = True
    form: Callable[[int, Metric], tuple[int, int]] = lambda dim, metric: (dim, faiss_metric(metric))
    prepare: Callable[[np.ndarray, int], tuple[np.ndarray, Any]] = lambda queries, dim: (queries, 1.0)
    on_gpu: bool = False
    native: bool = False
    min_items: int = 1
    get_width: Callable[[Any], int] = lambda index: 0
    set_width: Callable[[Any, int], None] = lambda index, width: None
    max_width: Callable[[Any], int] = lambda index: 0
    parameters: Callable[[int, int, Any], Any] = lambda width, fetch, selector: faiss.SearchParameters(
        sel=selector
    )


def find_kind(name: str) -> Kind:
    """Raises ValueError for a kind that is not in KINDS, and is not REMOTE."""
    if name == "milvus":
        return REMOTE
    if name not in KINDS:
        raise ValueError(f"index kind must be auto or one of {', '.join(KINDS)}, got {name!r}")
    return KINDS[name]


def read_index_file(path: Path, kind: str) -> Any:
    """An index that `faiss.write_index` wrote, mapped from the file wherever FAISS can.

    FAISS has no checksums: verify the file before. Raises ValueError when it is no index of this kind.
    """
    # 4-bit codes are always copied, and mapping them too would only show them twice
    flags = faiss.IO_FLAG_MMAP_IFC if hasattr(faiss, "IO_FLAG_MMAP_IFC") and kind != "ivf_pq_fs" else 0
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ValueError(f"FAISS cannot read the index: {str(error)[:200]}") from error
    if not isinstance(index, find_kind(kind).faiss_class):
        raise ValueError(f"the index is a {type(index).__name__}, which is not kind {kind!r}")
    return index


def _make_flat(embeddings: np.ndarray, metric: Metric, seed: int) -> Any:
    return faiss.IndexFlat(embeddings.shape[1], faiss_metric(metric))


def _make_flat_fp16(embeddings: np.ndarray, metric: Metric, seed: int) -> Any:
    largest = max(float(embeddings.max()), -float(embeddings.min()))
    if largest > np.finfo(np.float16).max:
        raise ValueError(f"index kind 'flat_fp16' cannot hold a value of {largest:.3g}: use 'flat'")
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexScalarQuantizer(embeddings.shape[1], kind, faiss_metric(metric))
    index.train(embeddings[:1])
    index.add(embeddings)
    return index


def _make_ivf_flat(embeddings: np.ndarray, metric: Metric, seed: int) -> Any:
    dim = index_dim(embeddings.shape[1], metric)
    quantizer = faiss.IndexFlatL2(dim)
    index = faiss.IndexIVFFlat(quantizer, dim, list_count(len(embeddings)), faiss_metric(metric))
    return fill_inverted_file(index, embeddings, metric, seed)


def _make_ivf_pq_fs(embeddings: np.ndarray, metric: Metric, seed: int) -> Any:
    """4 bits for every dimension. Fewer bits took longer: more candidates needed an exact score."""
    dim = index_dim(embeddings.shape[1], metric)
    quantizer = faiss.IndexFlatL2(dim)
    num_lists = list_count(len(embeddings))
    index = faiss.IndexIVFPQFastScan(quantizer, dim, num_lists, dim, 4, faiss_metric(metric))
    index.by_residual = metric == "inner_product"  # by distance it would need a table for every list
    index.pq.cp.seed = seed + 1
    index.pq.cp.min_points_per_centroid = 1
    return fill_inverted_file(index, embeddings, metric, seed)


def _set_nprobe(index: Any, width: int) -> None:
    index.nprobe = width


def _set_ef_search(index: Any, width: int) -> None:
    index.hnsw.efSearch = width


_INVERTED_FILE: dict[str, Any] = {
    "form": lambda dim, metric: (index_dim(dim, metric), faiss_metric(metric)),
    "prepare": extended_queries,
    "get_width": lambda index: index.nprobe,
    "set_width": _set_nprobe,
    "max_width": lambda index: index.nlist,
    "parameters": lambda width, fetch, selector: faiss.SearchParametersIVF(nprobe=width, sel=selector),
}
"""How every kind that searches the lists of the nearest centroids is queried."""

KINDS: dict[str, Kind] = {
    "flat": Kind(_make_flat, faiss.IndexFlat, exact=True, holds_items=False, masks=False, on_gpu=True),
    "flat_fp16": Kind(_make_flat_fp16, faiss.IndexScalarQuantizer, exact=True, on_gpu=True),
    "torch": Kind(_make_flat, faiss.IndexFlat, exact=True, holds_items=False, on_gpu=True),
    "ivf_flat": Kind(
        _make_ivf_flat,
        faiss.IndexIVFFlat,
        on_gpu=True,
        **_INVERTED_FILE,
    ),
    "ivf_pq_fs": Kind(
        _make_ivf_pq_fs,
        faiss.IndexIVFPQFastScan,
        rescored=2,
        native=True,
        min_items=256,
        **_INVERTED_FILE,
    ),
    "hnsw": Kind(
        make_hnsw,
        faiss.IndexHNSWFlat,
        rescored=1,
        masks=False,  # masked rows still fill the beam: asking for more results widens it too
        form=lambda dim, metric: (index_dim(dim, metric), faiss.METRIC_L2),
        prepare=lambda queries, dim: (graph_queries(queries, dim), 1.0),
        get_width=lambda index: index.hnsw.efSearch,
        set_width=_set_ef_search,
        max_width=lambda index: max(index.hnsw.efSearch, min(index.ntotal, 4_096)),
        parameters=lambda width, fetch, selector: faiss.SearchParametersHNSW(
            efSearch=max(width, fetch), sel=selector
        ),
    ),
}
"""Exact: `flat`; `flat_fp16` at half the memory; `torch`, one matrix product. Approximate: the others."""

REMOTE = Kind(_make_flat, faiss.IndexFlat, holds_items=False)
"""An empty index, for a bundle whose item embeddings are searched elsewhere (`milvus_search`)."""

if has_cagra():
    KINDS["cagra"] = Kind(
        make_cagra,
        faiss.IndexHNSWCagra,
        on_gpu=True,
        masks=False,
        get_width=lambda index: index.hnsw.efSearch,
        set_width=_set_ef_search,
        max_width=lambda index: max(index.hnsw.efSearch, min(index.ntotal, 1_024)),
        parameters=lambda width, fetch, selector: faiss.SearchParametersHNSW(efSearch=max(width, fetch)),
    )
