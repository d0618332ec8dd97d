"""CSV text, plain or gzipped, as record batches with line numbers.

The text is parsed block by block by pyarrow; columns that nobody asked for are split but not kept.
"""

from __future__ import annotations

import csv
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from model.data.bad_rows import BadRows
from model.data.interactions import DataError

_BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 1 << 16
_SEPARATORS = ",\t;|"


def read_first_line(path: Path) -> str:
    """The first line, without its end and without a byte order mark.   Raises DataError for an empty file."""
    try:
        with pa.input_stream(path, compression="detect") as stream:
            text = stream.read(_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    line = text.splitlines()[0] if text.strip() else ""
    if not line.strip():
        raise DataError(f"{path}: the file is empty, or its first line is")
    return line


def read_header(path: Path) -> list[str]:
    """The column names in the first line."""
    line = read_first_line(path)
    names = next(csv.reader([line], delimiter=_separator_of(line)))
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise DataError(
            f"{path}: the first line names column {repeated[0]!r} more than once: rename one of them"
        )
    return names


def scan_csv(
    path: Path,
    columns: Sequence[str],
    *,
    names: Sequence[str],
    separator: str = "",
    has_header: bool = True,
    bad_rows: BadRows,
) -> Iterator[tuple[pa.RecordBatch, Callable[[int], str]]]:
    """Batches of `columns` as bytes, each with a function from row number to place ("line 17").

    names: all columns of the file   separator: empty when the first line shall tell
    Rows with too few or too many fields go to `bad_rows`; blank lines are passed over. Values may hold
    quoted line breaks, which the line numbers do not count.
    Raises DataError for a row without an end, a file that is cut short, or one that cannot be read.
    """
    malformed = array("q")  # numbers of the rows that the parser dropped, ascending

    def drop(row: pacsv.InvalidRow) -> str:
        malformed.append(row.number)
        fields = f"{row.actual_columns} fields instead of {row.expected_columns}"
        bad_rows.add(1, path, lambda: (f"line {row.number}", f"the row has {fields}"))
        return "skip"

    parse = pacsv.ParseOptions(
        delimiter=separator or _separator_of(read_first_line(path)),
        newlines_in_values=True,
        ignore_empty_lines=False,  # so that the parser's row numbers count them
        invalid_row_handler=drop,
    )
    read = pacsv.ReadOptions(
        column_names=list(names), skip_rows=int(has_header), block_size=_BLOCK_BYTES, use_threads=False
    )
    convert = pacsv.ConvertOptions(
        include_columns=list(columns), column_types={name: pa.binary() for name in columns}
    )
    parsed = 0
    try:
        with pa.input_stream(path, compression="detect") as stream:
            for batch in pacsv.open_csv(
                stream, read_options=read, parse_options=parse, convert_options=convert
            ):
                filled, rows = _without_blank_lines(batch)
                first = parsed + 1 + int(has_header)
                yield filled, _line_place(first, rows, malformed)
                parsed += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        line = _line(parsed + 1 + int(has_header), malformed)
        problem = " ".join(str(error).split())
        if "straddling" in problem:
            problem = f"a row has no end within {_BLOCK_BYTES >> 20} MiB; is a quote left open?"
        raise DataError(f"{path}: line {line} or later cannot be read: {problem}") from error


def _separator_of(line: str) -> str:
    return max(_SEPARATORS, key=line.count)


def _without_blank_lines(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, np.ndarray | None]:
    """Rows with something in them.   -> the batch, and their row numbers in it when any were left out"""
    lengths = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        lengths += pc.binary_length(column).to_numpy(zero_copy_only=False)
    if lengths.all():
        return batch, None
    rows = np.flatnonzero(lengths)
    return batch.take(pa.array(rows)), rows


def _line_place(first: int, rows: np.ndarray | None, malformed: array[int]) -> Callable[[int], str]:
    def place(row: int) -> str:
        return f"line {_line(first + (row if rows is None else int(rows[row])), malformed)}"

    return place


def _line(number: int, malformed: array[int]) -> int:
    """The line of the row that would be `number` if the parser had dropped none before it."""
    line, dropped = number, 0
    while (before := bisect_right(malformed, line)) > dropped:
        line += before - dropped
        dropped = before
    return line
