"""What is wrong with a log is said in one line that names the place and the remedy."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.interactions import DataError, Rules
from model.data.reader import ReadOptions, read_interactions

HEADER = "user_id,item_id,timestamp\n"
GOOD = "ann,sku-1,1700000000\n"


def refusal(read, *paths: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(*paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("role", ["user", "item", "timestamp"])
def test_a_missing_column_is_named_with_those_that_exist_and_the_option(write_text, read, role):
    column = "timestamp" if role == "timestamp" else f"{role}_id"
    path = write_text("log.csv", HEADER.replace(column, "other") + GOOD)
    message = refusal(read, path)
    assert message.startswith(f"{path}: no column {column!r}; it has: ")
    assert "other" in message
    assert f"--{role}-column" in message


def test_a_missing_column_of_a_parquet_file_is_named(read, tmp_path):
    pq.write_table(pa.table({"user_id": [1], "sku": [2], "timestamp": [3]}), tmp_path / "log.parquet")
    message = refusal(read, tmp_path / "log.parquet")
    assert "no column 'item_id'; it has: 'user_id', 'sku', 'timestamp'" in message


def test_a_column_named_twice_is_refused(write_text, read):
    message = refusal(read, write_text("log.csv", "user_id,item_id,user_id,timestamp\n1,2,3,4\n"))
    assert "column 'user_id' more than once" in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ann,sku-1", "the row has 2 fields instead of 3"),
        ("ann,sku-1,5,6", "the row has 4 fields instead of 3"),
        ("ann,sku-1,yesterday", "timestamp 'yesterday' is no time"),
        ("ann,sku-1,", "timestamp '' is no time"),
        ("ann,sku-1,nan", "timestamp 'nan' is no time"),
        (",sku-1,5", "user_id is empty"),
        ("ann,,5", "item_id is empty"),
        ("ann," + "x" * 129 + ",5", "item_id 'xxxxxxxxxxxxxxxxxxxx'... has 129 characters; at most 128"),
        ("a\tnn,sku-1,5", r"user_id 'a\tnn' has characters that cannot be printed"),
        ("a\u200bnn,sku-1,5", r"user_id 'a\u200bnn' has characters that cannot be printed"),
    ],
)
def test_an_unusable_row_is_named_counted_and_refused_over_the_share(write_text, read, line, problem):
    path = write_text("log.csv", HEADER + GOOD * 2 + "\n" + line + "\n" + GOOD * 6)
    message = refusal(read, path)
    assert message.startswith(f"{path} line 5: {problem}")
    assert "1 of 9 rows (11.11%) cannot be used, more than max_bad_share = 1.00%" in message
    assert "--max-bad-share" in message


def test_fewer_unusable_rows_than_the_share_are_left_out_and_reported(write_text, read, rows_of):
    good = "".join(f"ann,sku-{row},{row}\n" for row in range(198))
    path = write_text("log.csv", HEADER + good + "bob,sku\nbob,sku,never\n")
    log = read(path)
    assert len(log) == 198
    assert log.user_ids == ["ann"]
    note = log.report[0].note
    assert "200 rows" in note
    assert f"2 of 200 rows (1.00%) left out as unusable, the first {path} line 200: the row has" in note
    with pytest.raises(DataError, match="2 of 200 rows"):
        read(path, max_bad_share=0.009)


def test_bytes_that_are_not_utf8_make_a_row_unusable(read, tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(HEADER.encode() + GOOD.encode() + b"\xff\xfe,sku,5\n")
    assert (
        "line 3: user_id '\\udcff\\udcfe' has characters that cannot be printed or are not UTF-8"
        in refusal(read, path)
    )


def test_lines_are_numbered_right_across_blocks_dropped_rows_and_blank_lines(write_text, read):
    lines = [f"user-{row % 50},item-{row % 70}-{'x' * 60},{row}" for row in range(60_000)]
    lines[10] = lines[40_000] = lines[54_999] = lines[55_001] = "two,fields"
    lines[20] = lines[54_998] = ""
    lines[55_000] = "ann,sku,-5"
    path = write_text("log.csv", HEADER + "\n".join(lines) + "\n")
    assert path.stat().st_size > 4 << 20  # several of the parser's blocks
    assert f"{path} line 55002: timestamp '-5'" in refusal(read, path)


@pytest.mark.parametrize(
    ("time", "fault"),
    [
        ("-1", "timestamp '-1', read as seconds, is negative"),
        ("-0.5", "is negative"),
        ("1800090000", "lies more than a day after now (2027-01-15 08:00 UTC)"),
        ("1700000000000000000", "lies more than a day after now"),
        ("2100-01-01", "lies more than a day after now"),
    ],
)
def test_an_impossible_time_refuses_the_log_at_once(write_text, read, time, fault):
    path = write_text("log.csv", HEADER + GOOD * 1000 + f"bob,sku,{time}\n")
    message = refusal(read, path)
    assert message.startswith(f"{path} line 1002: timestamp '{time}', read as seconds, ")
    assert fault in message
    assert "--time-unit" in message
    assert "--skip-impossible-times" in message


def test_impossible_times_can_be_counted_as_unusable_rows_instead(write_text, read):
    good = "".join(f"ann,sku-{row},{row}\n" for row in range(200))
    path = write_text("log.csv", HEADER + good + "bob,sku,-1\nbob,sku,1900000000\n")
    log = read(path, skip_impossible_times=True)
    assert len(log) == 200
    assert "2 of 202 rows" in log.report[0].note
    assert "line 202: timestamp '-1', read as seconds, is negative" in log.report[0].note


def test_a_time_within_the_next_day_is_accepted(write_text, read):
    path = write_text("log.csv", HEADER + "ann,sku,1800086400\n")
    assert read(path).timestamp.tolist() == [1_800_086_400]


def test_a_wrongly_told_unit_is_found_out(write_text, read):
    path = write_text("log.csv", HEADER + "ann,sku,1700000000000\n")
    assert "read as seconds, lies more than a day after now" in refusal(read, path, time_unit="s")


def test_a_large_log_that_is_mostly_unusable_is_refused_before_its_end(write_text):
    path = write_text("log.csv", HEADER + "ann,sku,never\n" * 500_000)
    rows: list[int] = []
    with pytest.raises(DataError, match="line 2: timestamp 'never'"):
        read_interactions([path], progress=rows.append)
    assert max(rows) < 300_000


def test_parquet_rows_are_named_by_number(read, tmp_path):
    table = pa.table({"user_id": ["a", None], "item_id": ["b", "c"], "timestamp": [1, 2]})
    pq.write_table(table, tmp_path / "log.parquet")
    assert f"{tmp_path / 'log.parquet'} row 2: user_id is missing" in refusal(read, tmp_path / "log.parquet")
    table = pa.table({"user_id": ["a", "a"], "item_id": ["b", "c"], "timestamp": [1, None]})
    pq.write_table(table, tmp_path / "log.parquet")
    assert "row 2: timestamp 'None' is no time" in refusal(read, tmp_path / "log.parquet")


def test_parquet_rows_are_numbered_on_from_batch_to_batch(read, tmp_path):
    num_rows = 300_000
    time = np.arange(num_rows)
    time[250_000] = -1
    number = np.arange(num_rows)
    table = pa.table({"user_id": number % 10, "item_id": number % 20, "timestamp": time})
    pq.write_table(table, tmp_path / "log.parquet")
    assert "log.parquet row 250001: timestamp '-1'" in refusal(read, tmp_path / "log.parquet")


@pytest.mark.parametrize("column", ["user_id", "item_id"])
@pytest.mark.parametrize("values", [[True, False], [1.0, 2.0]])
def test_truth_values_and_fractions_are_no_ids(read, tmp_path, column, values):
    table = {"user_id": ["a", "b"], "item_id": ["c", "d"], "timestamp": [1, 2], column: values}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    message = refusal(read, tmp_path / "log.parquet")
    assert f"column '{column}' has type" in message
    assert "ids must be strings or integers" in message


def test_truth_values_are_no_times(read, tmp_path):
    pq.write_table(
        pa.table({"user_id": ["a"], "item_id": ["c"], "timestamp": [True]}), tmp_path / "log.parquet"
    )
    assert "times must be numbers or dates" in refusal(read, tmp_path / "log.parquet")


def test_missing_paths_unknown_formats_and_empty_files_are_told_apart(write_text, read, tmp_path):
    assert "no such file or folder" in refusal(read, tmp_path / "none.csv")
    assert "unknown format; a log is one of .csv" in refusal(read, write_text("log.json", "{}"))
    assert "the file is empty" in refusal(read, write_text("empty.csv", ""))
    assert "the file is empty" in refusal(read, write_text("blank.csv", "\n\n"))
    assert "the log has no rows" in refusal(read, write_text("header.csv", HEADER))
    (tmp_path / "folder").mkdir()
    assert "the folder holds no log" in refusal(read, tmp_path / "folder")
    assert "no log was named" in refusal(read)
    path = write_text("log.csv", HEADER + GOOD)
    assert "named twice" in refusal(read, path, path)


def test_broken_files_are_refused_by_name(write_text, read, tmp_path):
    assert "not a readable Parquet file" in refusal(read, write_text("log.parquet", "PAR1 but no more"))
    packed = tmp_path / "cut.csv.gz"
    packed.write_bytes(
        gzip.compress((HEADER + "".join(f"u{i},i{i},{i}\n" for i in range(9000))).encode())[:-5000]
    )
    message = refusal(read, packed)
    assert f"{packed}: " in message
    assert "cannot be read" in message
    path = write_text("quote.csv", HEADER + GOOD + '"ann,sku,1\n' + GOOD * 100_000)
    assert f"{path}: line 3 or later cannot be read: a row has no end" in refusal(read, path)


def test_rules_that_leave_nothing_are_named(write_text, read):
    path = write_text("log.csv", HEADER + GOOD)
    message = refusal(read, path, rules=Rules())
    assert (
        "after the rule 'users with at least 5 interactions' (before it: 1 users, 1 interactions)" in message
    )


def test_logs_of_different_kinds_are_not_mixed(write_text, read):
    ours = write_text("log.csv", HEADER + GOOD)
    theirs = write_text("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,4\n")
    assert "looks like movielens, but the file before it like event_log" in refusal(read, ours, theirs)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "xml"}, "format must be one of auto, event_log, movielens, kuairand, got 'xml'"),
        ({"time_unit": "us"}, "time_unit must be one of auto, s, ms, got 'us'"),
        ({"max_bad_share": 1.0}, "max_bad_share must be at least 0 and below 1, got 1.0"),
        ({"user_column": ""}, "user_column must name a column"),
    ],
)
def test_wrong_options_are_refused(options, problem):
    with pytest.raises(DataError, match=re.escape(problem)):
        ReadOptions(**options)


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"min_interactions": 0}, "min_interactions must be at least 1, got 0"),
        ({"max_per_user": 0}, "max_per_user must be at least 1 or left out, got 0"),
        ({"duplicates": "drop"}, "duplicates must be one of keep, first, last, got 'drop'"),
    ],
)
def test_wrong_rules_are_refused(rules, problem):
    with pytest.raises(DataError, match=re.escape(problem)):
        Rules(**rules)
