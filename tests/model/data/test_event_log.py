"""Any event log: CSV and Parquet, one file, several or a folder."""

from __future__ import annotations

import csv
import gzip
import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.batch import UNKNOWN_TIME
from model.data.event_log import write_event_log
from model.data.interactions import DataError, Rules
from model.data.reader import ReadOptions, read_interactions

ROWS = [("ann", "sku-1", 1_700_000_000), ("bob", "sku-2", 1_700_000_050), ("ann", "sku-3", 1_700_000_100)]
SORTED = [ROWS[0], ROWS[2], ROWS[1]]
TEXT = "user_id,item_id,timestamp\n" + "".join(f"{user},{item},{time}\n" for user, item, time in ROWS)


def test_csv_rows_come_out_by_user_and_time(write_text, read, rows_of):
    log = read(write_text("log.csv", TEXT))
    assert rows_of(log) == SORTED
    assert log.user_ids == ["ann", "bob"]
    assert log.item_ids == ["sku-1", "sku-2", "sku-3"]
    np.testing.assert_array_equal(log.item_index, [1, 3, 2])
    np.testing.assert_array_equal(log.offsets, [0, 2, 3])
    assert (log.item_index.dtype, log.timestamp.dtype, log.offsets.dtype) == (np.int32, np.int64, np.int64)


def test_rows_out_of_time_order_are_sorted_and_ties_keep_file_order(write_text, read, rows_of):
    path = write_text("log.csv", "user_id,item_id,timestamp\nu,late,200\nu,b,100\nu,a,100\nu,c,100\n")
    assert [item for _, item, _ in rows_of(read(path))] == ["b", "a", "c", "late"]


def test_ties_across_files_keep_the_order_in_which_the_files_are_given(write_text, read, rows_of):
    first = write_text("z.csv", "user_id,item_id,timestamp\nu,one,100\n")
    second = write_text("a.csv", "user_id,item_id,timestamp\nu,two,100\n")
    assert [item for _, item, _ in rows_of(read(first, second))] == ["one", "two"]
    assert [item for _, item, _ in rows_of(read(second, first))] == ["two", "one"]


def test_a_folder_is_read_by_path_at_any_depth_and_marked_files_are_passed_over(
    write_text, read, rows_of, tmp_path
):
    write_text("log/day=2/part.csv", "user_id,item_id,timestamp\nu,two,100\n")
    write_text("log/day=1/part.csv", "user_id,item_id,timestamp\nu,one,100\n")
    write_text("log/_temporary/part.csv", "user_id,item_id,timestamp\nu,unfinished,100\n")
    write_text("log/.part.csv", "user_id,item_id,timestamp\nu,hidden,100\n")
    write_text("log/README.md", "not data")
    assert [item for _, item, _ in rows_of(read(tmp_path / "log"))] == ["one", "two"]


def test_gzipped_csv_equals_plain_csv(write_text, read, tmp_path):
    plain = read(write_text("log.csv", TEXT))
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    assert read(packed).fingerprint == plain.fingerprint


def test_suffixes_in_capitals_are_known(write_text, read, rows_of):
    assert rows_of(read(write_text("LOG.CSV", TEXT))) == SORTED


@pytest.mark.parametrize("separator", ["\t", ";", "|"])
def test_the_header_tells_the_separator(write_text, read, rows_of, separator):
    assert rows_of(read(write_text("log.csv", TEXT.replace(",", separator)))) == SORTED


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_no_trouble(write_text, read, rows_of):
    text = "\ufeff" + TEXT.replace("\n", "\r\n").replace("bob", "\r\nbob") + "\r\n\r\n"
    log = read(write_text("log.csv", text))
    assert rows_of(log) == SORTED
    assert "unusable" not in log.report[0].note


def test_columns_can_have_other_names_and_neighbours(write_text, read, rows_of):
    text = "shop,sku,who,at\n" + "".join(f"x,{item},{user},{time}\n" for user, item, time in ROWS)
    path = write_text("log.csv", text)
    assert rows_of(read(path, user_column="who", item_column="sku", timestamp_column="at")) == SORTED


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint16(), pa.int64()])
def test_integer_ids_become_their_decimal_strings(read, rows_of, tmp_path, kind):
    table = pa.table(
        {
            "user_id": pa.array([7, 7], kind),
            "item_id": pa.array([12, 3], kind),
            "timestamp": pa.array([100, 200]),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    assert rows_of(read(tmp_path / "log.parquet")) == [("7", "12", 100), ("7", "3", 200)]


def test_csv_ids_are_text_as_written(write_text, read, rows_of):
    path = write_text("log.csv", 'user_id,item_id,timestamp\n007,"a, b",100\n7, x,200\n007,ü-1.0,300\n')
    assert rows_of(read(path)) == [("007", "a, b", 100), ("007", "ü-1.0", 300), ("7", " x", 200)]


def test_dictionary_encoded_parquet_is_read_like_plain(read, rows_of, tmp_path):
    user, item, time = zip(*ROWS, strict=True)
    table = pa.table(
        {
            "user_id": pa.array(user).dictionary_encode(),
            "item_id": pa.array(item, pa.large_string()).dictionary_encode(),
            "timestamp": time,
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    assert rows_of(read(tmp_path / "log.parquet")) == SORTED


def test_parquet_batches_and_row_groups_join_without_a_seam(read, rows_of, tmp_path):
    num_rows = 300_000  # more than two batches
    user = [f"u{row % 1000}" for row in range(num_rows)]
    item = [f"i{row % 777}" for row in range(num_rows)]
    table = pa.table({"user_id": user, "item_id": item, "timestamp": np.arange(num_rows) // 3000})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=70_000)
    log = read(tmp_path / "log.parquet")
    expected = sorted(
        zip(user, item, (row // 3000 for row in range(num_rows)), strict=True),
        key=lambda row: (int(row[0][1:]), row[2]),
    )
    assert rows_of(log) == expected


def test_a_log_without_times_keeps_file_order(write_text, read, rows_of):
    path = write_text("log.csv", "user_id,item_id\nu,b\nv,c\nu,a\nu,b\n")
    log = read(path, timestamp_column="")
    assert rows_of(log) == [(u, i, UNKNOWN_TIME) for u, i in [("u", "b"), ("u", "a"), ("u", "b"), ("v", "c")]]
    assert not log.has_times


def test_reading_tells_the_rows_so_far(write_text):
    seen: list[int] = []
    first, second = write_text("a.csv", TEXT), write_text("b.csv", TEXT.replace("ann", "eve"))
    read_interactions(
        [first, second],
        options=ReadOptions(now=1_800_000_000),
        rules=Rules(min_interactions=1),
        progress=seen.append,
    )
    assert seen == [3, 6]


def test_sequences_are_views_and_can_end_early(write_text, read):
    log = read(write_text("log.csv", TEXT))
    sequence = log.sequence(0, end=1, request_time=123)
    assert sequence.item_index.tolist() == [1]
    assert sequence.request_time == 123
    assert np.shares_memory(sequence.item_index, log.item_index)
    with pytest.raises(ValueError, match=r"end must be in 2\.\.3 for user 1, got 1"):
        log.sequence(1, end=1)


def test_the_fingerprint_tells_logs_apart(write_text, read):
    names = {read(write_text("log.csv", TEXT)).fingerprint, read(write_text("same.csv", TEXT)).fingerprint}
    assert len(names) == 1
    for changed in (
        TEXT.replace("sku-3", "sku-4"),
        TEXT.replace("bob", "rob"),
        TEXT.replace("000100", "000101"),
        TEXT.replace("bob,", "ann,"),
    ):
        names.add(read(write_text("other.csv", changed)).fingerprint)
    assert len(names) == 5


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_a_written_log_reads_back(read, rows_of, tmp_path, name):
    user, item, time = (np.array(column) for column in zip(*ROWS, strict=True))
    write_event_log(tmp_path / name, user_id=user, item_id=item, timestamp=time)
    assert rows_of(read(tmp_path / name)) == SORTED
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    target = tmp_path / "log.csv"
    target.write_text("before")
    with pytest.raises(pa.ArrowInvalid):
        write_event_log(
            target, user_id=np.array(["a"]), item_id=np.array(["b", "c"]), timestamp=np.array([1, 2])
        )
    with pytest.raises(DataError, match=r"\.json: unknown format to write; let the name end in"):
        write_event_log(
            tmp_path / "log.json", user_id=np.array(["a"]), item_id=np.array(["b"]), timestamp=np.array([1])
        )
    with pytest.raises(DataError, match="does not exist: create it first"):
        write_event_log(
            tmp_path / "no" / "log.csv",
            user_id=np.array(["a"]),
            item_id=np.array(["b"]),
            timestamp=np.array([1]),
        )
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder.csv: cannot be written"):
        write_event_log(
            tmp_path / "folder.csv",
            user_id=np.array(["a"]),
            item_id=np.array(["b"]),
            timestamp=np.array([1]),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "log.csv"]
    assert target.read_text() == "before"


printable = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12
).filter(str.isprintable)
comment = st.text(st.sampled_from('ab,"\n;|'), max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(printable, printable, comment), min_size=1, max_size=30))
def test_any_csv_that_python_writes_is_read_right(tmp_path: Path, read, rows_of, rows):
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["user_id", "comment", "item_id", "timestamp"])
    for number, (user, item, text) in enumerate(rows):
        writer.writerow([user, text, item, number])
    path = tmp_path / "log.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    users = list(dict.fromkeys(user for user, _, _ in rows))
    expected = [(user, item, number) for number, (user, item, _) in enumerate(rows)]
    expected.sort(key=lambda row: (users.index(row[0]), row[2]))
    assert rows_of(read(path)) == expected


def test_quoted_line_breaks_do_not_hurt_where_the_parser_cuts_its_blocks(write_text, read):
    text = '"' + "a line\n" * 20 + '"'
    rows = "".join(f"{text},ann,sku-{row},{row}\n" for row in range(20_000))
    path = write_text("log.csv", "comment,user_id,item_id,timestamp\n" + rows)
    assert path.stat().st_size > 2 << 20  # several of the parser's blocks
    assert len(read(path, max_bad_share=0.0)) == 20_000


def utc(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (["1700000000", "1700000001"], [1_700_000_000, 1_700_000_001]),
        (["1700000000999", "1700000001000"], [1_700_000_000, 1_700_000_001]),
        (["1700000000.25", " 1700000001"], [1_700_000_000, 1_700_000_001]),
        (["0", "1"], [0, 1]),
        (
            ["2023-11-14T22:13:20Z", "2023-11-15 00:13:21+02:00"],
            [utc(2023, 11, 14, 22, 13, 20 + i) for i in (0, 1)],
        ),
        (["2023-11-14 22:13:20", "2023-11-15"], [utc(2023, 11, 14, 22, 13, 20), utc(2023, 11, 15)]),
    ],
)
def test_times_in_text_are_seconds_milliseconds_or_iso_dates(write_text, read, written, seconds):
    text = "user_id,item_id,timestamp\n" + "".join(f"u,i{i},{time}\n" for i, time in enumerate(written))
    assert read(write_text("log.csv", text)).timestamp.tolist() == seconds


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1_700_000_000, 1_700_000_001], pa.int32()),
        pa.array([1_700_000_000_000, 1_700_000_001_999], pa.int64()),
        pa.array([1_700_000_000.0, 1_700_000_001.9], pa.float64()),
        pa.array([1_700_000_000, 1_700_000_001], pa.timestamp("s")),
        pa.array([1_700_000_000_000_000, 1_700_000_001_900_000], pa.timestamp("us", "Europe/Berlin")),
        pa.array(["1700000000", "1700000001"]),
    ],
)
def test_times_in_parquet_may_be_numbers_dates_or_text(read, tmp_path, column):
    pq.write_table(
        pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": column}),
        tmp_path / "log.parquet",
    )
    assert read(tmp_path / "log.parquet").timestamp.tolist() == [1_700_000_000, 1_700_000_001]


def test_milliseconds_decide_the_order_within_a_second(write_text, read, rows_of):
    text = "user_id,item_id,timestamp\nu,second,1700000000900\nu,first,1700000000100\n"
    assert [item for _, item, _ in rows_of(read(write_text("log.csv", text)))] == ["first", "second"]


def test_a_told_unit_wins_over_the_guess(write_text, read):
    path = write_text("log.csv", "user_id,item_id,timestamp\nu,a,86400000\nu,b,86401000\n")
    assert read(path).timestamp.tolist() == [86_400_000, 86_401_000]
    assert read(path, time_unit="ms").timestamp.tolist() == [86_400, 86_401]


def test_each_file_tells_its_own_unit(write_text, read, rows_of):
    seconds = write_text("a.csv", "user_id,item_id,timestamp\nu,late,1700000002\n")
    milliseconds = write_text("b.csv", "user_id,item_id,timestamp\nu,early,1700000001000\n")
    expected = [("u", "early", 1_700_000_001), ("u", "late", 1_700_000_002)]
    assert rows_of(read(seconds, milliseconds)) == expected
