"""MovieLens ratings: `ratings.dat` (fields parted by '::'), `ratings.csv`, or a Parquet file of either.

Every rating is an interaction, whatever its value; rows of equal time keep the order of the file.
GroupLens, "The MovieLens Datasets: History and Context" (Harper & Konstan, ACM TiiS 5(4), 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.data.csv_log import read_first_line
from model.data.event_log import Layout
from model.data.interactions import DataError

SUFFIX = ".dat"
FOLDER_FILES = ("ratings.dat", "ratings.csv", "ratings.parquet")
"""What is read of a MovieLens folder: the first of these that is there (they hold the same rows)."""

FOLDER_MARKS = ("movies.dat", "movies.csv", "movies.parquet")

_CSV = ("userId", "movieId", "timestamp")
_PARQUET = ("user_id", "item_id", "timestamp")


def dat_layout(path: Path) -> Layout:
    """The layout of a `ratings.dat`.   Raises DataError when the first line is not of that kind."""
    line = read_first_line(path)
    if line.count("::") != 3:
        raise DataError(
            f"{path}: line 1: {line[:60]!r} is not UserID::MovieID::Rating::Timestamp, as a .dat file must be"
        )
    # For the CSV parser ':' is the separator, and an empty column lies within each '::'.
    header = ("user_id", "gap_1", "item_id", "gap_2", "rating", "gap_3", "timestamp")
    return Layout("movielens", "user_id", "item_id", "timestamp", "s", separator=":", header=header)


def table_layout(names: Sequence[str]) -> Layout:
    """The layout of a CSV or Parquet file with these columns."""
    user, item, time = _PARQUET if set(_PARQUET) <= set(names) else _CSV
    return Layout("movielens", user, item, time, "s")


def is_table(names: Sequence[str]) -> bool:
    """Whether the columns are those of a published `ratings.csv`."""
    return set(_CSV) <= set(names)
