"""The native search of `ivf_pq_fs`: FAISS's own file and codes, looked through in one call.

Choosing lists, scanning codes and giving exact scores is C++ here (`native/lists_variant.cpp`), without
numpy, torch and copies between the three. `setup.py` builds the library when there is a C++ compiler;
without it, or on a processor without AVX2, FAISS and torch do the same more slowly (`searchers`).
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.faiss_library import faiss
from index_builder.search_groups import MAX_FETCH_CPU
from model.native_file import open_if_usable
from model.two_tower import Metric

FOLDER = Path(__file__).parent
NAME = "native_search"

_ABI = 2
_BLOCK_ITEMS = 32


class _Spec(Structure):
    """T2ListsSpec"""

    _fields_ = (
        *[
            (name, c_int32)
            for name in ("abi", "by_distance", "by_residual", "item_dim", "list_dim", "subquantizers")
        ],
        ("num_lists", c_int64),
        *[(name, c_void_p) for name in ("centres", "list_bias", "table", "codes", "rows", "sizes", "items")],
    )


class _Batch(Structure):
    """T2ListsBatch"""

    _fields_ = (
        ("batch", c_int64),
        ("queries", c_void_p),
        ("num_probes", c_int64),
        ("fetch", c_int64),
        ("keep", c_int64),
        *[(name, c_void_p) for name in ("allowed", "scores", "found")],
    )


@functools.cache
def native_library(folder: Path = FOLDER) -> Any | None:
    """The library in `folder`; None, with a warning, where none was built or it cannot be used here."""
    return open_if_usable(folder, NAME, _opened, instead="FAISS and torch search")


def native_variants(library: Any) -> list[str]:
    """What was built and this processor can run, best first."""
    return [name for name in library.t2_lists_variants().decode().split(",") if name]


def native_lists(index: Any, embeddings: np.ndarray, metric: Metric) -> NativeLists | None:
    """The native search of an index, or None where it cannot be.   index, embeddings: as of NativeLists"""
    library = native_library()
    variants = native_variants(library) if library is not None else []
    if not variants:
        return None
    return NativeLists(library, index, embeddings, metric=metric, variant=variants[0])


class NativeLists:
    """A searcher (see `searchers.Searcher`) of an inverted file of 4-bit codes; its scores are exact."""

    masks = True
    max_fetch = MAX_FETCH_CPU

    def __init__(
        self, library: Any, index: Any, embeddings: np.ndarray, *, metric: Metric, variant: str
    ) -> None:
        """index: an IndexIVFPQFastScan, which is copied   embeddings: (M, D), which are not

        Raises MemoryError when there is no room for the copy.
        """
        lists = faiss.downcast_InvertedLists(index.invlists)
        assert (lists.n_per_block, index.pq.nbits) == (_BLOCK_ITEMS, 4)
        (num_items, dim), num_lists = embeddings.shape, index.nlist
        centres = faiss.downcast_index(index.quantizer).reconstruct_n(0, num_lists)  # (L, D')
        if metric == "l2":
            bias = -0.5 * np.einsum("ld,ld->l", centres, centres)
        else:
            bias = np.ascontiguousarray(centres[:, dim:].sum(axis=1))  # a query has 1 there
        numbers = range(num_lists)
        codes = np.array([int(lists.get_codes(number) or 0) for number in numbers], dtype=np.uint64)
        rows = np.array([int(lists.get_ids(number) or 0) for number in numbers], dtype=np.uint64)
        sizes = np.array([lists.list_size(number) for number in numbers], dtype=np.int64)
        table = faiss.vector_to_array(index.pq.centroids)
        shape = (_ABI, metric == "l2", bool(index.by_residual), dim, index.d, index.pq.M, num_lists)
        arrays = (centres, bias, table, codes, rows, sizes, embeddings)
        spec = _Spec(*shape, *(array.ctypes.data for array in arrays))
        self._library, self._embeddings = library, embeddings
        self._lists = library.t2_lists_create(variant.encode(), ctypes.byref(spec))
        if not self._lists:
            raise MemoryError(f"no memory for the codes of {num_items} items")
        self._num_items = num_items
        self.variant = variant
        self.max_width = num_lists

    def __del__(self) -> None:
        if getattr(self, "_lists", None):
            self._library.t2_lists_destroy(self._lists)

    def search(
        self, queries: np.ndarray, *, fetch: int, keep: int, width: int, skip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `keep` of at least `fetch` candidates from the `width` best lists.

        queries: (B, D) float32   skip: rows   -> scores (B, K), rows (B, K); -inf and -1 at the end
        where fewer were found
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores = np.empty((len(queries), keep), dtype=np.float32)
        rows = np.empty((len(queries), keep), dtype=np.int64)
        allowed = None if skip is None else self._bits_without(skip)
        batch = _Batch(
            len(queries),
            queries.ctypes.data,
            width,
            fetch,
            keep,
            None if allowed is None else allowed.ctypes.data,
            scores.ctypes.data,
            rows.ctypes.data,
        )
        if self._library.t2_lists_search(self._lists, ctypes.byref(batch)):
            raise MemoryError(f"no memory to search {len(queries)} queries for {fetch} candidates each")
        return scores, rows

    def _bits_without(self, skip: np.ndarray) -> np.ndarray:
        allowed = np.ones(self._num_items, dtype=bool)
        allowed[skip] = False
        return np.packbits(allowed, bitorder="little")


def _opened(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    if library.t2_lists_abi() != _ABI:
        raise ValueError("it was built from other sources")
    library.t2_lists_variants.restype = c_char_p
    library.t2_lists_create.restype = c_void_p
    library.t2_lists_create.argtypes = [c_char_p, POINTER(_Spec)]
    library.t2_lists_destroy.restype = None
    library.t2_lists_destroy.argtypes = [c_void_p]
    library.t2_lists_search.restype = c_int
    library.t2_lists_search.argtypes = [c_void_p, POINTER(_Batch)]
    return library
