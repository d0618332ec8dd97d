"""Which rows of a vocabulary are served: both numberings agree, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index_builder.bundle import load_bundle
from index_builder.bundle_files import FILES_OF_VERSION, ITEM_ROWS, MANIFEST, check_bundle
from index_builder.canary import replay_canary
from index_builder.item_rows import ItemRows, read_item_rows, write_item_rows
from index_builder.mapped_tensors import write_tensors
from tests.index_builder.test_bundle import reseal

SERVED = np.array([True, False, True, True, False])


def test_item_index_and_served_index_lead_to_each_other():
    rows = ItemRows.of_served(SERVED)
    assert rows.item_index.tolist() == [1, 3, 4]
    assert rows.served(np.array([1, 2, 3, 4, 5, 3])).tolist() == [1, 0, 2, 3, 0, 2]
    assert [rows.is_served(item) for item in (1, 2, None)] == [True, False, False]
    assert list(rows.ids(["a", "b", "c", "d", "e"])) == ["a", "c", "d"]
    assert rows.ids(["a", "b", "c", "d", "e"])[-1] == "d"
    assert rows.ids(["a", "b", "c", "d", "e"])[1:] == ["c", "d"]
    np.testing.assert_array_equal(rows.embeddings(np.eye(5))[1], np.eye(5)[2])


def test_where_everything_is_served_nothing_is_held_or_copied():
    rows = ItemRows.of_served(np.ones(4, dtype=bool))
    assert rows.item_index is None
    table, ids, index = np.eye(4), ["a", "b", "c", "d"], np.array([4, 1])
    assert rows.embeddings(table) is table
    assert rows.ids(ids) is ids
    assert rows.served(index) is index


def test_rows_read_back_as_they_were_written(tmp_path):
    days, deleted, on = np.arange(5, dtype=np.int32), np.array([2], np.int32), np.array([700], np.int32)
    written = ItemRows.of_served(SERVED, last_seen_day=days, deleted=deleted, deleted_day=on)
    write_item_rows(tmp_path / "rows", written, 5)
    found = read_item_rows(tmp_path / "rows", 5)
    for name in ("item_index", "served_index", "last_seen_day", "deleted", "deleted_day"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
    write_item_rows(tmp_path / "none", ItemRows(), 5)
    assert vars(read_item_rows(tmp_path / "none", 5)) == vars(ItemRows())


@pytest.mark.parametrize(
    "change",
    [
        {"num_items": np.array([6])},
        {"item_index": np.array([1, 3], np.int32)},
        {"item_index": np.array([1, 4, 3], np.int32)},
        {"item_index": np.array([0, 3, 4], np.int32)},
        {"item_index": np.array([1, 3, 6], np.int32)},
        {"item_index": np.array([1, 3, 4], np.int64)},
        {"served_index": np.array([0, 1, 0, 2, 3], np.int32)},
        {"served_index": np.array([0, 1, 2, 3, 0, 0], np.int32)},
        {"served_index": np.array([1, 1, 0, 2, 3, 0], np.int32)},
        {"last_seen_day": np.array([1], np.int32)},
        {"deleted": np.array([6], np.int32), "deleted_day": np.array([1], np.int32)},
        {"deleted": np.array([1], np.int32)},
        {"deleted": np.array([1], np.int32), "deleted_day": np.array([1, 2], np.int32)},
        {"another": np.array([1], np.int32)},
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, change):
    rows = ItemRows.of_served(SERVED)
    sound = {
        "num_items": np.array([5]),
        "item_index": rows.item_index,
        "served_index": rows.served_index,
    }
    write_tensors(tmp_path / "rows", sound)
    read_item_rows(tmp_path / "rows", 5)
    write_tensors(tmp_path / "rows", sound | change)
    with pytest.raises(ValueError, match=r"belong|fit|days for"):
        read_item_rows(tmp_path / "rows", 5)


def test_a_bundle_of_format_2_still_loads_and_answers(built, tmp_path):
    """Format 3 without its one new file is format 2, where every item was served."""
    older = Path(shutil.copytree(built, tmp_path / built.name))
    manifest = json.loads((older / MANIFEST).read_bytes())
    manifest["format_version"] = 2
    del manifest["files"][ITEM_ROWS]
    del manifest["counts"]["vocabulary"]
    (older / ITEM_ROWS).unlink()
    older = reseal(older, manifest)
    assert check_bundle(older)["format_version"] == 2
    bundle = load_bundle(older)
    assert bundle.item_ids == bundle.vocabulary == load_bundle(built).vocabulary
    assert bundle.rows.item_index is None
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)


def test_each_format_version_holds_its_own_files(built, tmp_path):
    assert ITEM_ROWS in FILES_OF_VERSION[3]
    assert set(FILES_OF_VERSION[3]) - set(FILES_OF_VERSION[2]) == {ITEM_ROWS}
    claims_2 = Path(shutil.copytree(built, tmp_path / built.name))
    manifest = json.loads((claims_2 / MANIFEST).read_bytes())
    with pytest.raises(ValueError, match="which no bundle holds"):
        load_bundle(reseal(claims_2, manifest | {"format_version": 2}))
