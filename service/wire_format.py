"""A stored sequence read, and candidates written, in one native call each (`native/wire.cpp`).

A Python object for every behaviour and every candidate costs more than all else that a request does: they
are many, and the memory that they lie in has been used for something else since the last one. `setup.py`
builds the library when there is a C++ compiler; without it Python does the same more slowly.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_int64, c_uint32, c_void_p
from itertools import pairwise
from pathlib import Path

import numpy as np

from index_builder.bundle import Bundle
from index_builder.item_ids import Vocabulary
from model.native_file import open_if_usable

FOLDER = Path(__file__).parent
NAME = "native_wire"
_ABI = 1
_BYTES_PER_CANDIDATE = 64
"""At first: braces, names, a score and an id of 20 bytes."""


class _Ids(Structure):
    """T2Ids"""

    _fields_ = (("text", c_void_p), ("offset", c_void_p), ("count", c_int64))


class _Vocabulary(Structure):
    """T2Vocabulary"""

    _fields_ = (("ids", _Ids), ("rows", c_void_p), ("start", c_void_p), ("mask", c_uint32))


class _Answers(Structure):
    """T2Answers"""

    _fields_ = (
        ("batch", c_int64),
        ("width", c_int64),
        ("rows", c_void_p),
        ("scores", c_void_p),
        ("counts", c_void_p),
        ("num_rows", c_int64),
        ("item_of", c_void_p),
        ("vocabulary", _Ids),
        ("added", _Ids),
    )


class Wire:
    """The library's functions. The brief ones keep Python's lock: to get it back would take longer."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, AttributeError or ValueError when `path` is no such library."""
        brief, library = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
        if brief.t2_wire_abi() != _ABI:
            raise ValueError("it was built from other sources")
        self.count = brief.t2_wire_count
        self.count.restype, self.count.argtypes = c_int64, [c_char_p, c_int64, c_char_p, c_int64]
        self.known = brief.t2_wire_known
        self.known.restype = c_int64
        self.known.argtypes = [POINTER(_Vocabulary), c_char_p, c_int64, c_void_p, c_void_p]
        self.candidates = library.t2_wire_candidates
        self.candidates.restype = c_int64
        self.candidates.argtypes = [POINTER(_Answers), c_void_p, c_int64, c_void_p]


@functools.cache
def native_wire(folder: Path = FOLDER) -> Wire | None:
    """The library in `folder`; None, with a warning, where none was built or it cannot be used here."""
    return open_if_usable(folder, NAME, Wire, instead="Python reads and writes")


def count_behaviours(wire: Wire, value: bytes, owner: str) -> int | None:
    """How many behaviours a packed value of `owner` holds; None for one that needs a closer look."""
    name = owner.encode("utf-8", "surrogatepass")
    count: int = wire.count(value, len(value), name, len(name))
    return None if count < 0 else count


class NativeItems:
    """The item ids of one bundle as its sequences and answers name them. Any thread may ask."""

    def __init__(self, wire: Wire, bundle: Bundle) -> None:
        """bundle: whose vocabulary is mapped (`Vocabulary`)"""
        ids, item_of = bundle.vocabulary, bundle.rows.item_index
        assert isinstance(ids, Vocabulary)
        self._wire = wire
        self._kept: tuple[object, ...] = (ids, item_of)  # what the pointers below lead to
        named = _ids(ids.text, ids.offset)
        rows, start = ids.bucket_row, ids.bucket_start
        self._vocabulary = _Vocabulary(named, rows.ctypes.data, start.ctypes.data, len(start) - 2)
        self._added = _Ids()
        self._num_rows = len(bundle.item_ids)
        self._item_of = None if item_of is None else item_of.ctypes.data

    def with_added(self, item_ids: Sequence[str]) -> NativeItems:
        """The same, and new items: row M + i of an answer is the i-th of them."""
        texts = [item_id.encode() for item_id in item_ids]
        offset = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        text = np.frombuffer(b"".join(texts) or b" ", dtype=np.uint8)
        changed = object.__new__(NativeItems)
        changed.__dict__ |= self.__dict__
        changed._kept = (*self._kept, text, offset)
        changed._added = _ids(text, offset)
        return changed

    def known(self, value: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The behaviours with items that the model knows.   value, count: as `count_behaviours` counted it

        -> item indices (N,), timestamps (N,), both int64
        """
        found = np.empty((2, count), dtype=np.int64)
        to = found.ctypes.data
        num = self._wire.known(ctypes.byref(self._vocabulary), value, len(value), to, to + 8 * count)
        return found[0, :num], found[1, :num]

    def written(self, rows: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> list[bytes]:
        """Each answer's candidates as a JSON list of `{"item_id", "score"}`.

        rows: (B, K) int64 of the index and the new items   scores: (B, K) float32, written in the fewest
        digits that give the same float32 again   counts: (B,) int64 candidates of each, from the first on
        """
        rows, scores = np.ascontiguousarray(rows), np.ascontiguousarray(scores)
        assert (rows.dtype, scores.dtype, counts.dtype) == (np.int64, np.float32, np.int64)
        ends = np.empty(len(rows), dtype=np.int64)
        answers = _Answers(
            *rows.shape,
            *(each.ctypes.data for each in (rows, scores, counts)),
            self._num_rows,
            self._item_of,
            self._vocabulary.ids,
            self._added,
        )
        size = int(counts.sum()) * _BYTES_PER_CANDIDATE + 2 * len(rows)
        while True:
            text = np.empty(size, dtype=np.uint8)
            written = self._wire.candidates(ctypes.byref(answers), text.ctypes.data, size, ends.ctypes.data)
            if written < 0:
                raise IndexError(f"an answer names a row beyond the {self._num_rows} of the index")
            if written <= size:
                break
            size = written
        whole = text[:written].tobytes()
        bounds = [0, *ends.tolist()]
        return [whole[start:end] for start, end in pairwise(bounds)]


def native_items(bundle: Bundle) -> NativeItems | None:
    """Of a bundle that lies in a file; None where there is no library."""
    wire = native_wire()
    if wire is None or not isinstance(bundle.vocabulary, Vocabulary):
        return None
    return NativeItems(wire, bundle)


def _ids(text: np.ndarray, offset: np.ndarray) -> _Ids:
    return _Ids(text.ctypes.data, offset.ctypes.data, len(offset) - 1)
