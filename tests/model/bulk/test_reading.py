"""A log read in pieces is the log read at once: same rows, same ids in the same order, same words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.bulk import reading
from model.bulk.reading import read_interactions_on
from model.data.interactions import DataError, Interactions, Rules
from model.data.reader import ReadOptions, read_interactions
from tests.model.bulk.one_process import OneProcess

NOW = 1_800_000_000
EVERYONE = Rules(min_interactions=1)


def write(path: Path, rows: list[tuple[Any, Any, Any]], *, group_rows: int = 2) -> Path:
    users, items, times = zip(*rows, strict=True) if rows else ([], [], [])
    columns = [pa.array(users, pa.string()), pa.array(items, pa.string()), pa.array(times, pa.int64())]
    table = pa.table(columns, ["user_id", "item_id", "timestamp"])
    pq.write_table(table, path, row_group_size=group_rows)
    return path


def outcome(read: Any, *arguments: Any, **options: Any) -> Any:
    """All that a reader tells: every byte of the interactions, or the words of the refusal."""
    try:
        log: Interactions = read(*arguments, **options)
    except DataError as error:
        return str(error)
    arrays = (log.offsets, log.item_index, log.timestamp)
    return (
        log.user_ids,
        log.item_ids,
        [(array.dtype, array.tobytes()) for array in arrays],
        log.report,
        log.fingerprint,
    )


def assert_same(paths: list[Path], *, options: ReadOptions | None = None, rules: Rules = EVERYONE) -> Any:
    options = options or ReadOptions(now=NOW)
    at_once = outcome(read_interactions, paths, options=options, rules=rules)
    in_pieces = outcome(read_interactions_on, OneProcess(), paths, options=options, rules=rules, piece_rows=2)
    assert in_pieces == at_once
    return at_once


ROW = st.tuples(
    st.sampled_from(["ann", "bob", "cleo", "", None, "dora", "\x00"]),
    st.sampled_from(["a", "b", "c", "d", "e" * 129]),
    st.one_of(st.none(), st.integers(1_600_000_000, 1_600_000_003)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(ROW, max_size=9), min_size=1, max_size=3), st.integers(1, 4))
def test_any_log_cut_anywhere_is_read_as_at_once(tmp_path, files, group_rows):
    paths = [
        write(tmp_path / f"{number}.parquet", rows, group_rows=group_rows)
        for number, rows in enumerate(files)
    ]
    assert_same(paths, options=ReadOptions(now=NOW, max_bad_share=0.6))


def test_parts_of_one_piece_go_on_with_its_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PART_ROWS", 1)
    monkeypatch.setattr("model.data.csv_log._BLOCK_BYTES", 64)
    rows = [(f"u{row % 3}", f"i{row % 5}", 1_600_000_000 + row) for row in range(40)]
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    assert_same([path])


def test_csv_gzip_and_parquet_in_one_folder_are_read_in_the_order_of_their_names(tmp_path):
    pack = pa.CompressedOutputStream
    write(tmp_path / "b.parquet", [("u", "x", 5), ("v", "y", 5), ("u", "x", 5), ("w", "z", 7)])
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\nw,z,7\nu,q,5\n")
    with pack(str(tmp_path / "c.csv.gz"), "gzip") as file:
        file.write(b"user_id,item_id,timestamp\nv,y,5\nv\nu,last,9\n")
    log = assert_same([tmp_path], options=ReadOptions(now=NOW, max_bad_share=0.5))
    assert log[0] == ["w", "u", "v"]


def test_columns_of_categories_keep_their_order(tmp_path):
    users = pa.array(["b", "a", "b", "c", "a", "d"]).dictionary_encode()
    items = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2, 1, 1, 0], pa.int8()), ["z", "y", "x"])
    table = pa.table({"user_id": users, "item_id": items, "timestamp": [3, 2, 1, 6, 5, 4]})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2)
    log = assert_same([tmp_path / "log.parquet"])
    assert log[1] == ["z", "y", "x"]


def test_the_first_times_of_a_file_decide_the_unit_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr("model.data.event_log._BATCH_ROWS", 2)
    milliseconds = [("u", "a", 1_600_000_000_000), ("v", "a", 1_600_000_000_000)]
    early = [("u", "b", 90_000_000), ("v", "b", 90_000_000)]  # 25 hours into 1970, as milliseconds
    path = write(tmp_path / "log.parquet", milliseconds + early)
    log = assert_same([path])
    assert np.frombuffer(log[2][2][1], np.int64).min() == 90_000


GOOD = [("u", "a", 5), ("u", "b", 6), ("v", "a", 5)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*GOOD, ("v", "b", -5), ("v", "c", -6)], "row 4: timestamp '-5'"),
        ([*GOOD, ("", "b", 5), ("v", "", 5)], "row 4: user_id is empty; 2 of 5 rows"),
        ([], "no rows"),
    ],
    ids=["an impossible time", "too many bad rows", "nothing"],
)
def test_a_log_that_is_refused_is_refused_in_the_same_words(tmp_path, rows, words):
    assert words in assert_same([write(tmp_path / "log.parquet", rows)])


def test_the_first_fault_is_told_though_a_later_file_is_broken_too(tmp_path):
    first = write(tmp_path / "a.parquet", [*GOOD, ("v", "b", -5)])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    assert "a.parquet row 4" in assert_same([first, tmp_path / "b.parquet"])
    sound = write(tmp_path / "c.parquet", GOOD)
    assert "b.parquet: not a readable" in assert_same([sound, tmp_path / "b.parquet"])


def test_a_hopeless_log_is_refused(tmp_path):
    rows = [("", "a", 5)] * 150_000
    path = write(tmp_path / "log.parquet", rows, group_rows=120_000)
    told = outcome(read_interactions_on, OneProcess(), [path], options=ReadOptions(now=NOW), piece_rows=2)
    assert "row 1: user_id is empty; 120,000 of 120,000 rows" in told


def test_a_node_without_the_file_says_that_storage_must_be_shared(tmp_path):
    path = write(tmp_path / "log.parquet", GOOD)
    reader = reading.PieceReader([], ReadOptions())
    (piece,) = reading._pieces(path, 0, 100)
    fields = dict(piece.fields())
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"has another .*log.parquet.*shared storage"):
        next(reader(fields))
    path.unlink()
    with pytest.raises(ValueError, match=r"has no .*log.parquet.*shared storage"):
        next(reader(fields))
