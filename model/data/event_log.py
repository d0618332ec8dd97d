"""The shape of a log and the scan of its files: any log with a user, an item and perhaps a time.

A scan gives record batches of the few columns that matter; a file is never held as a whole.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from model.data.bad_rows import BadRows
from model.data.csv_log import read_header, scan_csv
from model.data.interactions import DataError
from model.data.timestamps import TimeColumn, TimeUnit, check_time_type
from model.data.vocabulary import check_id_type

PARQUET_SUFFIXES = (".parquet", ".pq")
CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

_BATCH_ROWS = 1 << 17
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """Where a format keeps what we need.

    timestamp_column: empty for a log without times   keep: (column, value) pairs that a row must have
    separator, header: of a text file whose first line is data; empty where the first line names the columns
    """

    format: str
    user_column: str
    item_column: str
    timestamp_column: str
    time_unit: TimeUnit = "auto"
    keep: tuple[tuple[str, int], ...] = ()
    separator: str = ""
    header: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read, each once."""
        named = (self.user_column, self.item_column, self.timestamp_column, *(name for name, _ in self.keep))
        return tuple(dict.fromkeys(name for name in named if name))

    @property
    def condition(self) -> str:
        """What a row must have to be kept, in words."""
        return " and ".join(f"{name} = {value}" for name, value in self.keep) or "usable values"

    def times(self) -> TimeColumn | None:
        """A reader for one file's times, None for a log without."""
        return TimeColumn(self.time_unit) if self.timestamp_column else None


@dataclass(frozen=True)
class LogBatch:
    """Some consecutive rows of a file.

    columns: name -> (N,) values   place: row number in the batch -> where people find it ("line 17")
    """

    columns: dict[str, pa.Array]
    place: Callable[[int], str]


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether the file's name ends so, in capitals or not."""
    return path.name.lower().endswith(suffixes)


def column_names(path: Path) -> list[str]:
    """The columns that a Parquet or CSV file says it has.   Raises DataError when it cannot be read."""
    if has_suffix(path, PARQUET_SUFFIXES):
        with _open_parquet(path) as file:
            return list(file.schema_arrow.names)
    return read_header(path)


def rows_of_groups(path: Path) -> list[int]:
    """How many rows each row group of a Parquet file holds.   Raises DataError when it cannot be read."""
    with _open_parquet(path) as file:
        return [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]


def scan(
    path: Path, layout: Layout, bad_rows: BadRows, *, row_groups: range | None = None
) -> Iterator[LogBatch]:
    """The layout's columns of a file, batch by batch, in file order.

    row_groups: of a Parquet file, only these, which follow each other
    Raises DataError for a missing column, a column that cannot hold ids or times, or a broken file;
    rows that a CSV parser cannot split go to `bad_rows`.
    """
    names = list(layout.header) or column_names(path)
    missing = [name for name in layout.columns if name not in names]
    if missing:
        raise DataError(_missing_column(path, missing[0], names, layout))
    if has_suffix(path, PARQUET_SUFFIXES):
        yield from _scan_parquet(path, layout, row_groups)
        return
    columns = layout.columns
    lines = scan_csv(
        path,
        columns,
        names=names,
        separator=layout.separator,
        has_header=not layout.header,
        bad_rows=bad_rows,
    )
    for batch, place in lines:
        yield LogBatch(dict(zip(columns, batch.columns, strict=True)), place)


def write_event_log(path: Path, *, user_id: np.ndarray, item_id: np.ndarray, timestamp: np.ndarray) -> None:
    """Write an event log: Parquet for .parquet and .pq, CSV for .csv and .csv.gz.

    user_id, item_id: (R,) strings   timestamp: (R,) int64 unix seconds
    The file appears whole or not at all. Raises DataError for another suffix or a missing folder.
    """
    if not has_suffix(path, (*PARQUET_SUFFIXES, ".csv", ".csv.gz")):
        raise DataError(f"{path}: unknown format to write; let the name end in .csv, .csv.gz or .parquet")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist: create it first")
    table = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("xb") as file:
            if has_suffix(path, PARQUET_SUFFIXES):
                pq.write_table(table, file)
            elif has_suffix(path, (".gz",)):
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as stream:
                    pacsv.write_csv(table, stream)
            else:
                pacsv.write_csv(table, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        beside.unlink(missing_ok=True)


def _missing_column(path: Path, column: str, names: Sequence[str], layout: Layout) -> str:
    """The message for a column that is not there."""
    shown = ", ".join(repr(name[:40]) for name in names[:20]) + (", ..." if len(names) > 20 else "")
    remedy = f"a {layout.format} file needs it"
    if layout.format == "event_log":
        role = {layout.user_column: "user", layout.item_column: "item"}.get(column, "timestamp")
        remedy = f"name the {role} column with --{role}-column"
        if role == "timestamp":
            remedy += " (empty for a log without times)"
    return f"{path}: no column {column!r}; it has: {shown}. Remedy: {remedy}"


def _scan_parquet(path: Path, layout: Layout, row_groups: range | None) -> Iterator[LogBatch]:
    with _open_parquet(path) as file:
        schema = file.schema_arrow
        for column in (layout.user_column, layout.item_column):
            check_id_type(schema.field(column).type, column=column, path=path)
        if layout.timestamp_column:
            time = layout.timestamp_column
            check_time_type(schema.field(time).type, column=time, path=path)
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        first_row = 1 + sum(file.metadata.row_group(number).num_rows for number in range(groups.start))
        batches = file.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=list(groups), columns=list(layout.columns), use_threads=False
        )
        try:
            for batch in batches:
                columns = {name: batch.column(name) for name in layout.columns}
                yield LogBatch(columns, _row_place(first_row))
                first_row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: row {first_row} or later cannot be read: {one_line(error)}") from error


def _row_place(first_row: int) -> Callable[[int], str]:
    return lambda row: f"row {first_row + row}"


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES)  # else a column chunk is held as a whole
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split())
