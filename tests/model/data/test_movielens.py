"""MovieLens as GroupLens publishes it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.interactions import DataError

DAT = "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n1::914::3::978302109\n"
EXPECTED = [
    ("1", "1193", 978300760),
    ("1", "661", 978302109),
    ("1", "914", 978302109),
    ("2", "1193", 978298413),
]


def test_ratings_dat_keeps_its_order_in_ties(write_text, read, rows_of):
    log = read(write_text("ratings.dat", DAT))
    assert rows_of(log) == EXPECTED
    assert log.report[0].note == "movielens format, 1 file, 4 rows"


def test_ratings_csv_and_parquet_give_the_same(write_text, read, tmp_path):
    rows = [line.split("::") for line in DAT.splitlines()]
    text = "userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in rows)
    columns = zip(*((int(user), int(item), int(time)) for user, item, _, time in rows), strict=True)
    table = pa.table(dict(zip(("user_id", "item_id", "timestamp"), columns, strict=True)))
    pq.write_table(table, tmp_path / "ratings.parquet")
    expected = read(write_text("ratings.dat", DAT)).fingerprint
    assert read(write_text("ratings.csv", text)).fingerprint == expected
    assert read(tmp_path / "ratings.parquet").fingerprint == expected
    assert read(tmp_path / "ratings.parquet", format="movielens").fingerprint == expected


def test_a_movielens_folder_gives_its_ratings_only_and_only_once(write_text, read, rows_of, tmp_path):
    write_text("ml/ratings.dat", DAT)
    write_text("ml/ratings.csv", "userId,movieId,rating,timestamp\n9,9,9,9\n")
    write_text("ml/movies.dat", "1::Toy Story (1995)::Animation\n")
    write_text("ml/users.dat", "1::F::1::10::48067\n")
    assert rows_of(read(tmp_path / "ml")) == EXPECTED


def test_a_row_of_ratings_dat_that_is_not_whole_is_named(write_text, read):
    path = write_text("ratings.dat", DAT + "3::12::4\n" + DAT)
    with pytest.raises(DataError, match=r"ratings.dat line 5: the row has 5 fields instead of 7"):
        read(path)
    path = write_text("ratings.dat", DAT + "3::12::4::x\n" + DAT)
    with pytest.raises(DataError, match=r"ratings.dat line 5: timestamp 'x' is no time"):
        read(path)


def test_a_dat_file_of_another_kind_is_refused(write_text, read):
    path = write_text("ratings.dat", "1 2 3\n")
    with pytest.raises(DataError, match="line 1: '1 2 3' is not UserID::MovieID::Rating::Timestamp"):
        read(path)
    with pytest.raises(DataError, match=r"a \.dat file is read as movielens, but format is 'kuairand'"):
        read(path, format="kuairand")
