"""The fused engine: the whole user tower in one call of native code, one user after the other in cache.

What a user gets depends neither on who shares the batch nor on its width, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from ctypes import byref, c_int64
from typing import Any

import numpy as np
import torch

from model.batch import PaddedSequences, SequenceBatch
from model.engines.interface import TowerEngine
from model.engines.native_library import NativeLibrary
from model.engines.native_spec import NativeBatch, SpecWriter, why_not
from model.engines.plan import reverse_plan
from model.noise import route_keys
from model.t2diff import T2Diff

BF16_TOLERANCE = 5e-3
"""Measured on three models trained on MovieLens-1M: at most 1.8e-3."""

_BAD_ITEM, _BAD_LENGTH = 1, 2


class FusedTower(TowerEngine):
    """T2Diff's user tower in native code, bound to the weights as they are now.

    Its noise is that of the keys; its sums run in another order than torch's, in fp32 or, where the variant's
    name says so, with bf16 products in the U-Net. One call at a time.
    """

    def __init__(
        self, model: T2Diff, library: NativeLibrary, *, variant: str | None = None, num_threads: int = 1
    ) -> None:
        """variant: one of library.variants, the best when None

        Raises ValueError for a model or a variant that cannot be had here.
        """
        super().__init__(model)
        variant = variant or library.variants[0]
        if variant not in library.variants:
            raise ValueError(
                f"variant {variant!r} does not run on this processor: choose {', '.join(library.variants)}"
            )
        reason = why_not(model)
        if reason:
            raise ValueError(f"the fused tower cannot run this model: {reason}; use tower_engine exact")
        self.model: T2Diff = model
        self.name = f"fused-{variant}"
        if variant.endswith("bf16"):
            self.tolerance = BF16_TOLERANCE
        self.num_threads = num_threads
        self._library = library.functions
        self._dim = model.embedding_dim
        self._item_table = model.item_table.weight  # the library reads it where it lies
        writer = SpecWriter(model, reverse_plan(model))
        self._tower = self._library.t2_create(variant.encode(), byref(writer.spec))
        if not self._tower:
            raise MemoryError("no memory for the fused tower's weights")
        weakref.finalize(self, self._library.t2_destroy, self._tower)

    def user_embeddings(self, batch: SequenceBatch, keys: Sequence[int]) -> torch.Tensor:
        """(B, R, D). Raises ValueError for keys, lengths or item indices that do not fit."""
        tensors = (batch.item_index, batch.timestamp, batch.length, batch.request_time)
        arrays = [values.to("cpu", torch.int64).contiguous().numpy() for values in tensors]
        return torch.from_numpy(self.embed(PaddedSequences(*arrays), keys))

    def embed(self, padded: PaddedSequences, keys: Sequence[int]) -> np.ndarray:
        """(B, R, D). Raises ValueError for keys, lengths or item indices that do not fit."""
        num_routes = self.model.num_routes
        size, width = padded.item_index.shape
        if len(keys) != size:
            raise ValueError(f"keys: {len(keys)} were given for {size} sequences; give one each")
        every = np.array(route_keys(keys, num_routes), dtype=np.uint64)
        user = np.empty((size, num_routes, self._dim), dtype=np.float32)
        addresses = [values.ctypes.data for values in (*padded, every, user)]
        native = NativeBatch(size, width, num_routes, *addresses)
        where = c_int64()
        result = self._library.t2_run(self._tower, byref(native), self.num_threads, byref(where))
        if result:
            raise self._error(result, where.value, padded)
        return user

    def operations(self, length: int) -> float:
        """Floating-point operations of the U-Net that one sequence of `length` takes, all steps together."""
        return float(self._library.t2_operations(self._tower, length))

    def _error(self, result: int, row: int, padded: PaddedSequences) -> Exception:
        length = int(padded.length[row])
        if result == _BAD_ITEM:
            items: Any = padded.item_index[row, :length].tolist()
            return ValueError(
                f"item_index: sequence {row} has indices outside 1..{self.model.num_items}: {items}"
            )
        if result == _BAD_LENGTH:
            return ValueError(f"length: sequence {row} has {length}, not 1..{padded.item_index.shape[1]}")
        return MemoryError("no memory for the fused tower's rows")
