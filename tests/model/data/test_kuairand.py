"""KuaiRand as published: clicks of the main feed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.interactions import DataError

HEADER = "user_id,video_id,date,hourmin,time_ms,is_click,is_like,tab\n"
FIRST = HEADER + (
    "0,31,20220422,1300,1650603600500,1,0,1\n"
    "0,32,20220422,1300,1650603600100,1,0,1\n"
    "0,33,20220422,1300,1650603601000,0,0,1\n"
    "0,34,20220422,1300,1650603602000,1,0,0\n"
)
SECOND = HEADER + "0,35,20220425,1300,1650862800000,1,1,1\n7,31,20220425,1300,1650862800000,1,0,1\n"
EXPECTED = [
    ("0", "32", 1650603600),
    ("0", "31", 1650603600),
    ("0", "35", 1650862800),
    ("7", "31", 1650862800),
]


def test_only_clicks_of_the_main_feed_count_and_milliseconds_order_them(write_text, read, rows_of, tmp_path):
    write_text("pure/data/log_standard_4_08_to_4_21_pure.csv", FIRST)
    write_text("pure/data/log_standard_4_22_to_5_08_pure.csv", SECOND)
    write_text("pure/data/video_features_basic_pure.csv", "video_id,author_id\n31,5\n")
    log = read(tmp_path / "pure")
    assert rows_of(log) == EXPECTED
    assert log.report[0].note == "kuairand format, 2 files, 6 rows; 4 rows with tab = 1 and is_click = 1"


def test_parquet_with_item_ids_and_numbers_is_read_alike(read, rows_of, tmp_path):
    rows = [line.split(",") for line in (FIRST + SECOND.removeprefix(HEADER)).splitlines()[1:]]
    user, item, _, _, time, click, _, tab = zip(*rows, strict=True)
    table = pa.table(
        {
            "user_id": [int(value) for value in user],
            "item_id": [int(value) for value in item],
            "timestamp": [int(value) // 1000 for value in time],
            "time_ms": [int(value) for value in time],
            "is_click": pa.array([int(value) for value in click], pa.int8()),
            "tab": [int(value) for value in tab],
        }
    )
    pq.write_table(table, tmp_path / "impressions.parquet")
    assert rows_of(read(tmp_path / "impressions.parquet")) == EXPECTED


def test_unusable_rows_are_named_by_their_line_behind_the_filter(write_text, read):
    path = write_text("log_random.csv", FIRST + ",31,20220422,1300,1650603600500,1,0,1\n")
    with pytest.raises(DataError, match=r"log_random.csv line 6: user_id is empty; 1 of 5 rows"):
        read(path)


def test_a_log_without_clicks_and_one_without_its_columns_are_refused(write_text, read):
    path = write_text("log_a.csv", HEADER + "0,31,20220422,1300,1650603600500,0,0,1\n")
    with pytest.raises(DataError, match="the log has 1 rows, none with tab = 1 and is_click = 1"):
        read(path)
    path = write_text("log_b.csv", "user_id,video_id,time_ms\n1,2,3\n")
    with pytest.raises(DataError, match=r"no column 'tab'; it has: .* Remedy: a kuairand file needs it"):
        read(path, format="kuairand")


def test_an_event_log_with_mapped_columns_is_not_taken_for_kuairand(write_text, read):
    path = write_text("log_a.csv", FIRST)
    log = read(path, item_column="video_id", timestamp_column="time_ms")
    assert len(log) == 4
    assert log.report[0].note.startswith("event_log format")


def test_a_folder_of_other_logs_is_not_cut_down_to_those_named_like_kuairands(write_text, read, tmp_path):
    write_text("ours/log_1.csv", "user_id,item_id,timestamp\n1,2,3\n")
    write_text("ours/more.csv", "user_id,item_id,timestamp\n1,4,5\n")
    assert len(read(tmp_path / "ours")) == 2
