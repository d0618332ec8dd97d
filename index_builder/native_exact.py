"""The native search of a small catalogue: all scores, exclusions and the best of each query in one call.

One query's scores take less time than numpy takes to look at them. So scoring, masking and choosing is C++
here (`native/exact.h`), in the library of the list search; without it FAISS and torch do the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int32, c_int64, c_void_p
from itertools import accumulate
from typing import Any

import numpy as np

from index_builder.native_lists import native_library, native_variants
from model.two_tower import Metric

_LANES, _GROUPS = 16, 4
_NONE = np.empty(0, dtype=np.int64)


class _Batch(Structure):
    """T2ExactBatch"""

    _fields_ = (
        ("by_distance", c_int32),
        ("dim", c_int32),
        *[(name, c_int64) for name in ("num_items", "batch", "top_k")],
        *[(name, c_void_p) for name in ("items", "queries", "wanted", "excluded", "ends", "scores", "rows")],
    )


def native_exact(embeddings: np.ndarray, metric: Metric) -> NativeExact | None:
    """The native search of these embeddings, or None where it cannot be.   embeddings: (M, D)"""
    library = native_library()
    variants = native_variants(library) if library is not None else []
    return NativeExact(library, embeddings, metric=metric, variant=variants[0]) if variants else None


class NativeExact:
    """Item embeddings, copied: groups of 16 items side by side."""

    def __init__(self, library: Any, embeddings: np.ndarray, *, metric: Metric, variant: str) -> None:
        """embeddings: (M, D) float32   variant: one of `native_variants`"""
        self._search = library.t2_exact_search
        self._search.restype, self._search.argtypes = c_int, [c_char_p, POINTER(_Batch)]
        self._variant = variant.encode()
        self._by_distance = metric == "l2"
        self.num_items, self._dim = embeddings.shape
        at_once = _LANES * _GROUPS
        items = np.zeros((-(-self.num_items // at_once) * at_once, self._dim), dtype=np.float32)
        items[: self.num_items] = embeddings
        self._items = np.ascontiguousarray(items.reshape(-1, _LANES, self._dim).transpose(0, 2, 1))

    def search(
        self, queries: np.ndarray, wanted: np.ndarray, exclude: Sequence[np.ndarray | None] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best rows of each query, best first, the lower row among equals.

        queries: (B, D) float32, contiguous   wanted: (B,) int64   exclude: per query the rows never to
        return, or None; rows that do not exist are ignored
        -> scores (B, K), rows (B, K) with K the most wanted; -inf and -1 where fewer are left
        """
        wanted = np.ascontiguousarray(wanted)
        shape = (len(queries), int(wanted.max(initial=0)))
        scores, rows = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64)
        each = [] if exclude is None else [_NONE if out is None else out for out in exclude]
        excluded = np.concatenate(each, dtype=np.int64) if each else _NONE
        ends = np.array(list(accumulate(map(len, each))) or [0] * len(queries), dtype=np.int64)
        batch = _Batch(
            self._by_distance,
            self._dim,
            self.num_items,
            *shape,
            *(a.ctypes.data for a in (self._items, queries, wanted, excluded, ends, scores, rows)),
        )
        if self._search(self._variant, ctypes.byref(batch)):
            raise MemoryError(f"no memory to search {self.num_items} items")
        return scores, rows
