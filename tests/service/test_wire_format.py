"""The native reading of sequences and writing of candidates, beside the same in Python."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder.item_ids import read_item_ids, write_item_ids
from index_builder.item_rows import ItemRows
from model.native_file import native_file
from service import wire_format
from service.bundle_items import BundleItems
from service.engine import Engine
from service.packed_sequence import (
    MAX_BEHAVIOURS,
    MAX_TIMESTAMP,
    NotThisUserError,
    PackedSequence,
    StoredSequence,
    unpack,
    unpack_in_python,
)
from service.wire_format import NativeItems, native_items, native_wire

pytestmark = pytest.mark.skipif(native_wire() is None, reason="built without a C++ compiler")

ODD_IDS = ['"', "\\", 'a"b\\c', "ключ", "鍵/1", "🎬", "a b", "\x01\x1f\x7f", "x" * 512, "i1", "i10", "I1"]
SCORES = [0.0, -0.0, 1.0, -7.0, 0.1, 1e-45, 1.17549435e-38, 3.4028235e38, 16777216.0, 1e20, 123456.79, -1e-7]

line = st.sampled_from([b"1", b"0", b"007", b"1700000000", b"9007199254740991", b"9007199254740992", b"-1"])
odd_line = st.sampled_from(
    [b"", b" 5", b"1_0", b"+3", b"1.5", b"\xff", "é".encode(), b"i1", b"99999999999999999"]
)
values = st.one_of(
    st.lists(st.one_of(line, odd_line), max_size=9).map(lambda lines: b"\n".join([b"u", *lines])),
    st.lists(st.tuples(line, odd_line), max_size=5).map(
        lambda pairs: b"u\n" + b"".join(b"%b\n%b\n" % pair for pair in pairs)
    ),
    st.binary(max_size=30).map(lambda rest: b"u\n" + rest),
    st.binary(max_size=30),
)


def outcome(read: object, value: bytes) -> object:
    """What it gives, or the words with which it refuses."""
    try:
        sequence = read(value, "u")  # type: ignore[operator]
        return sequence.item_ids, sequence.timestamps, len(sequence)
    except NotThisUserError as error:
        return str(error)


@given(values)
def test_a_value_reads_alike_in_both_ways(value: bytes) -> None:
    assert outcome(unpack, value) == outcome(unpack_in_python, value)


@pytest.mark.parametrize("value", [b"v\n5\ni1\n", b"u5\n5\ni1\n", b"uv5\ni1\n", b"", b"u"])
def test_a_value_of_somebody_else_is_refused_in_both_ways(value: bytes) -> None:
    for read in (unpack, unpack_in_python):
        with pytest.raises(NotThisUserError):
            read(value, "u")


def test_plain_values_are_left_packed() -> None:
    value = f"u\n0\ni1\n{MAX_TIMESTAMP}\nключ\n".encode()
    assert isinstance(unpack(value, "u"), PackedSequence)
    assert unpack(value, "u") == StoredSequence(["i1", "ключ"], [0, MAX_TIMESTAMP])
    assert isinstance(unpack(b"u\n", "u"), PackedSequence)
    assert len(unpack(b"u\n", "u")) == 0


def test_as_many_behaviours_as_any_setting_keeps_and_no_more() -> None:
    most = b"u\n" + b"5\ni1\n" * MAX_BEHAVIOURS
    assert len(unpack(most, "u")) == MAX_BEHAVIOURS
    with pytest.raises(NotThisUserError, match="longer than any sequence"):
        unpack(most + b"5\ni1\n", "u")


def with_ids(engine: Engine, folder: Path, item_ids: list[str], served: list[bool] | None = None) -> Engine:
    """The same engine with another vocabulary, some of which is retired."""
    write_item_ids(folder / "ids", item_ids)
    vocabulary, index_of = read_item_ids(folder / "ids")
    rows = ItemRows() if served is None else ItemRows.of_served(np.array(served))
    bundle = replace(
        engine.bundle,
        vocabulary=vocabulary,
        item_index_of=index_of,
        rows=rows,
        item_ids=rows.ids(vocabulary),
    )
    return Engine(bundle, device="cpu")


def native(engine: Engine) -> NativeItems:
    items = native_items(engine.bundle)
    assert items is not None
    return items


def pack(item_ids: list[str]) -> PackedSequence:
    text = "u\n" + "".join(f"{100 + n}\n{item_id}\n" for n, item_id in enumerate(item_ids))
    packed = unpack(text.encode(), "u")
    assert isinstance(packed, PackedSequence)
    return packed


def test_behaviours_find_the_items_that_python_finds(engine: Engine, tmp_path: Path) -> None:
    ids = [*(item_id for item_id in ODD_IDS if "\n" not in item_id), *(f"sku-{n}" for n in range(5_000))]
    changed = with_ids(engine, tmp_path, ids)
    rng = np.random.default_rng(0)
    asked = (
        [ids[row] for row in rng.integers(0, len(ids), 300)] + ["unknown", "sku-5000", "I", "i1 "] + ODD_IDS
    )
    packed = pack(asked)
    plain, quick = BundleItems(changed.bundle), BundleItems(changed.bundle, native(changed))
    for expected, found in zip(
        plain.known(StoredSequence(packed.item_ids, packed.timestamps)), quick.known(packed), strict=True
    ):
        assert found.dtype == expected.dtype == np.int64
        assert found.tolist() == expected.tolist()
    assert [found.tolist() for found in quick.known(pack(["unknown"]))] == [[], []]


def test_an_item_is_not_taken_for_one_that_begins_alike(engine: Engine, tmp_path: Path) -> None:
    changed = with_ids(engine, tmp_path, ["i10"])  # one bucket
    known, _ = native(changed).known(pack(["i1", "i10", "i100"]).value, 3)
    assert known.tolist() == [1]


def test_a_callers_own_sequence_is_read_beside_it(engine: Engine) -> None:
    items = BundleItems(engine.bundle, native(engine))
    known, timestamp = items.known(StoredSequence(["gone", "i3", "i7"], [1, 20, 300]))
    assert engine.bundle.vocabulary[known[0] - 1] == "i3"
    assert (len(known), timestamp.tolist()) == (2, [20, 300])


def test_candidates_are_written_as_python_writes_them(engine: Engine, tmp_path: Path) -> None:
    changed = with_ids(engine, tmp_path, ODD_IDS)
    rows = np.stack([np.arange(len(ODD_IDS)), np.arange(len(ODD_IDS))[::-1]])
    scores = np.stack([np.array(SCORES, dtype=np.float32), np.array(SCORES[::-1], dtype=np.float32)])
    counts = np.array([len(ODD_IDS), 5])
    plain = BundleItems(changed.bundle).listed(rows, scores, counts)
    quick = BundleItems(changed.bundle, native(changed)).listed(rows, scores, counts)
    for expected, found, count in zip(plain, quick, (len(ODD_IDS), 5), strict=True):
        assert len(found) == len(expected) == count
        assert found.item_ids == expected.item_ids
        assert all(type(score) is float for score in found.scores)
        assert np.array(found.scores, np.float32).tobytes() == np.array(expected.scores, np.float32).tobytes()


def test_scores_take_the_fewest_digits(engine: Engine) -> None:
    rows, scores = np.zeros((1, 3), np.int64), np.array([[0.1, 4.0, 1e-7]], np.float32)
    (text,) = native(engine).written(rows, scores, np.array([3]))
    first = json.dumps(engine.bundle.item_ids[0]).encode()
    assert text == b"[%s]" % b",".join(
        b'{"item_id":%b,"score":%b}' % (first, digits) for digits in (b"0.1", b"4.0", b"1e-07")
    )


@given(score=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_score_comes_back_as_the_same_float32(engine: Engine, score: float) -> None:
    scores = np.array([[score]], np.float32)
    (text,) = native(engine).written(np.zeros((1, 1), np.int64), scores, np.array([1]))
    (candidate,) = json.loads(text)
    assert np.float32(candidate["score"]).tobytes() == scores.tobytes()


def test_retired_items_keep_their_ids_and_new_ones_follow(engine: Engine, tmp_path: Path) -> None:
    changed = with_ids(engine, tmp_path, ["a", "b", "c", "d"], served=[False, True, False, True])
    rows, scores, counts = np.array([[0, 1, 2, 3]]), np.ones((1, 4), np.float32), np.array([4])
    for each in (BundleItems(changed.bundle), BundleItems(changed.bundle, native(changed))):
        (candidates,) = each.with_added(["new", '"new"']).listed(rows, scores, counts)
        assert candidates.item_ids == ["b", "d", "new", '"new"']
    known, _ = BundleItems(changed.bundle, native(changed)).known(pack(["a", "d"]))
    assert known.tolist() == [1, 4], "histories still hold what is retired"


@pytest.mark.parametrize("row", [-1, 4, 6])
def test_a_row_that_does_not_exist_is_an_error(engine: Engine, tmp_path: Path, row: int) -> None:
    items = native(with_ids(engine, tmp_path, ["a", "b", "c", "d"])).with_added(["e", "f"])
    rows = np.array([[row if row != 4 else 10**12]])
    with pytest.raises(IndexError, match="beyond the 4 of the index"):
        items.written(rows, np.ones((1, 1), np.float32), np.array([1]))


def test_long_ids_get_the_room_that_they_need(engine: Engine, tmp_path: Path) -> None:
    ids = [f"{n}" + "\x01" * 120 for n in range(50)]  # six bytes each in JSON
    rows = np.tile(np.arange(50), (3, 1))
    texts = native(with_ids(engine, tmp_path, ids)).written(
        rows, np.ones((3, 50), np.float32), np.array([50, 0, 50])
    )
    assert [len(json.loads(text)) for text in texts] == [50, 0, 50]
    assert [each["item_id"] for each in json.loads(texts[2])] == ids


def test_a_library_that_is_none_is_not_used_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert native_wire(tmp_path) is None
    assert not caplog.records
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "native_wire.so").write_bytes(b"not a library")
    with caplog.at_level(logging.WARNING):
        assert native_wire(broken) is None
    assert "native_wire.so is not used, Python reads and writes instead" in caplog.text


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = native_file(wire_format.FOLDER, wire_format.NAME)
    assert path is not None
    monkeypatch.setattr(wire_format, "_ABI", 0)
    with pytest.raises(ValueError, match="built from other sources"):
        wire_format.Wire(path)
