"""Item ids as flat arrays are the list and the dict that they stand for."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_builder import item_ids as item_ids_module
from index_builder.item_ids import ItemIndexOf, read_item_ids, write_item_ids
from index_builder.mapped_tensors import map_tensors, write_tensors

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@pytest.fixture
def always_mapped(monkeypatch):
    """No dict, however few the items."""
    monkeypatch.setattr(item_ids_module, "MAX_DICT_ITEMS", 0)


@given(ids=st.lists(TEXT, min_size=1, max_size=60, unique=True), others=st.lists(TEXT, max_size=20))
@settings(max_examples=150, deadline=None)
def test_positions_and_lookups_are_those_of_a_list_and_a_dict(tmp_path_factory, ids, others):
    path = tmp_path_factory.mktemp("ids") / "ids"
    write_item_ids(path, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_ids_module, "MAX_DICT_ITEMS", 0)
        found, index_of = read_item_ids(path)
    assert isinstance(index_of, ItemIndexOf)
    assert list(found) == ids == found
    assert len(found) == len(index_of) == len(ids)
    assert [found[m] for m in range(-len(ids), len(ids))] == ids + ids
    assert found[1:5:2] == ids[1:5:2]
    expected = {item_id: m + 1 for m, item_id in enumerate(ids)}
    assert dict(index_of) == expected
    for item_id in others:
        assert (item_id in index_of) == (item_id in expected)
        assert index_of.get(item_id) == expected.get(item_id)
    with pytest.raises(IndexError, match=f"item row {len(ids)} of"):
        found[len(ids)]


def test_what_is_no_item_id_is_not_found(tmp_path, always_mapped):
    write_item_ids(tmp_path / "ids", ["a", "é"])
    index_of = read_item_ids(tmp_path / "ids")[1]
    for stranger in ("A", "", "e", "\ud800", 1, None, b"a"):
        assert stranger not in index_of
        assert index_of.get(stranger, 7) == 7
    with pytest.raises(KeyError):
        index_of["A"]


def test_ids_of_one_bucket_are_told_apart(tmp_path, always_mapped, monkeypatch):
    monkeypatch.setattr(item_ids_module.zlib, "crc32", lambda key: 5)
    ids = [f"item {m}" for m in range(40)]
    write_item_ids(tmp_path / "ids", ids)
    index_of = read_item_ids(tmp_path / "ids")[1]
    assert [index_of[item_id] for item_id in ids] == list(range(1, 41))
    assert "item 40" not in index_of


def test_few_items_are_looked_up_in_a_dict(tmp_path):
    write_item_ids(tmp_path / "ids", ["a", "b"])
    assert read_item_ids(tmp_path / "ids")[1] == {"a": 1, "b": 2}


@pytest.mark.parametrize("ids", [["a", "b", "a"], ["a", 1]])
def test_ids_that_are_not_distinct_strings_are_not_written(tmp_path, ids):
    with pytest.raises(ValueError, match="item ids must be distinct strings"):
        write_item_ids(tmp_path / "ids", ids)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset", np.array([0, 2, 1, 3])),
        ("offset", np.array([0, 1, 2, 4])),
        ("bucket_row", np.array([0, 1, 3], dtype=np.uint32)),
        ("bucket_row", np.array([0, 1], dtype=np.uint32)),
        ("bucket_start", np.array([0, 2, 1, 3, 3], dtype=np.uint32)),
        ("bucket_start", np.array([0, 1, 2, 3, 9], dtype=np.uint32)),
        ("text", np.zeros(2, dtype=np.uint8)),
        ("offset", np.array([0, 1, 2, 3], dtype=np.int32)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, name, value):
    write_item_ids(tmp_path / "ids", ["a", "b", "c"])
    arrays = {key: array.copy() for key, array in map_tensors(tmp_path / "ids").items()}
    write_tensors(tmp_path / "changed", {**arrays, name: value})
    with pytest.raises(ValueError, match="do not fit together"):
        read_item_ids(tmp_path / "changed")


def test_different_ids_of_one_checksum_are_distinct(tmp_path):
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    write_item_ids(tmp_path / "ids", ["plumless", "other", "buckeroo"])
    item_ids, index_of = read_item_ids(tmp_path / "ids")
    assert list(item_ids) == ["plumless", "other", "buckeroo"]
    assert [index_of[item_id] for item_id in item_ids] == [1, 2, 3]
    with pytest.raises(ValueError, match="distinct"):
        write_item_ids(tmp_path / "ids", ["plumless", "buckeroo", "plumless"])
