"""Titles of items: read from a catalogue, kept in the bundle, mapped by the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.build import build_bundle
from index_builder.bundle import load_bundle
from index_builder.bundle_files import TITLES, BundleError
from index_builder.item_features import read_catalogue
from index_builder.mapped_tensors import write_tensors
from index_builder.publish import Store
from index_builder.titles import map_titles, read_titles, write_titles
from tests.untrained import untrained_checkpoint


def test_titles_come_back_by_row_and_are_empty_where_unknown(tmp_path: Path) -> None:
    write_titles(tmp_path / "titles", ["a", "b", "c"], {"a": "Ä film", "c": "映画", "z": "of no item"})
    assert list(map_titles(tmp_path / "titles", 3)) == ["Ä film", "", "映画"]
    write_titles(tmp_path / "none", ["a"], {})
    assert list(map_titles(tmp_path / "none", 1)) == [""]


@pytest.mark.parametrize("arrays", [
    {"text": np.zeros(3, np.uint8), "offset": np.array([0, 1], np.int64)},
    {"text": np.zeros(3, np.uint8), "offset": np.array([0, 9, 2], np.int64)},
    {"text": np.zeros(3, np.uint8), "offset": np.array([0, 1, 2], np.int32)},
])  # fmt: skip
def test_a_file_that_does_not_fit_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_tensors(tmp_path / "titles", arrays)
    with pytest.raises(ValueError, match="titles do not fit 2 items"):
        map_titles(tmp_path / "titles", 2)


def test_a_title_is_no_feature(tmp_path: Path) -> None:
    csv = tmp_path / "items.csv"
    csv.write_text("item_id,title,genre\ni1,  A   film ,drama\ni2,,drama\n")
    assert read_titles(csv) == {"i1": "A film"}
    assert read_catalogue(csv) == {"i1": ["genre=drama"], "i2": ["genre=drama"]}
    table = pa.table({"item_id": ["i1", "i2"], "title": ["A film", None]})
    pq.write_table(table, tmp_path / "items.parquet")
    assert read_titles(tmp_path / "items.parquet") == {"i1": "A film"}
    plain = tmp_path / "plain.csv"
    plain.write_text("item_id,genre\ni1,drama\n")
    assert read_titles(plain) == {}
    with pytest.raises(ValueError, match="cannot be read"):
        read_titles(tmp_path / "missing.csv")


def test_a_bundle_may_have_titles_without_features(tmp_path: Path) -> None:
    store = Store(tmp_path)
    bundle_id = build_bundle(untrained_checkpoint(0), store, catalogue={"i1": []}, titles={"i2": "Two"})
    bundle = load_bundle(store.bundle_url(bundle_id))
    assert bundle.features is None
    assert bundle.titles is not None
    assert list(bundle.titles)[:3] == ["", "Two", ""]
    without = load_bundle(store.bundle_url(build_bundle(untrained_checkpoint(0), store)))
    assert without.titles is None
    (tmp_path / bundle_id / TITLES).unlink()
    with pytest.raises(BundleError, match=TITLES):
        load_bundle(store.bundle_url(bundle_id))
