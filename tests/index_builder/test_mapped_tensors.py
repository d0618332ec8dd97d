"""Mapped arrays are those that were written, cost nothing until read, and survive their file's name."""

from __future__ import annotations

import struct

import numpy as np
import psutil
import pytest
import torch

from index_builder.mapped_tensors import map_tensors, map_weights, write_tensors, write_weights

MIB = 1 << 20


def test_arrays_of_every_type_read_back(tmp_path):
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(3, dtype=np.int64),
        "c": np.arange(5, dtype=np.uint32),
        "d": np.empty(0, dtype=np.uint8),
    }
    write_tensors(tmp_path / "file", arrays)
    found = map_tensors(tmp_path / "file")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_writing_to_an_array_changes_no_file_and_unlinking_the_file_no_array(tmp_path):
    write_tensors(tmp_path / "file", {"a": np.arange(4, dtype=np.float32)})
    before = (tmp_path / "file").read_bytes()
    found = map_tensors(tmp_path / "file")["a"]
    found[0] = 9
    assert (tmp_path / "file").read_bytes() == before
    (tmp_path / "file").unlink()
    np.testing.assert_array_equal(found, [9, 1, 2, 3])


@pytest.mark.parametrize("read", [map_tensors, map_weights])
def test_what_is_not_read_is_not_in_memory(tmp_path, read):
    write_weights(tmp_path / "file", {"a": torch.ones(64 * MIB // 256, 64), "b": torch.ones(3)})
    before = psutil.Process().memory_info().rss
    found = read(tmp_path / "file")["a"]
    assert psutil.Process().memory_info().rss - before < 8 * MIB
    assert float(found.sum()) == 64 * MIB / 4
    assert psutil.Process().memory_info().rss - before > 48 * MIB


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"\xff" * 64,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"{{{",
        struct.pack("<Q", 63)
        + b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}} '
        + b"x" * 15,
        struct.pack("<Q", 63)
        + b'{"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}} '
        + b"x" * 16,
        struct.pack("<Q", 63)
        + b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}} '
        + b"x" * 16,
        struct.pack("<Q", 63)
        + b'{"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}} '
        + b"x" * 16,
    ],
)
def test_anything_else_is_refused(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises((ValueError, KeyError, AttributeError)):
        map_tensors(tmp_path / "file")
