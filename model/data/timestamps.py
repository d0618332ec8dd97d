"""Times as logs write them (seconds, milliseconds, dates) to unix milliseconds.

Milliseconds inside, so that the order of a log that has them is not lost; Interactions hold seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.data.interactions import DataError

TimeUnit = Literal["auto", "s", "ms"]

UNREADABLE = np.iinfo(np.int64).min
"""Stands where a value is no time at all."""

_MILLISECONDS_FROM = 1e11
"""As seconds this is the year 5138, as milliseconds 1973: a log's median from here on is milliseconds."""

_LARGEST_MS = 9e18


class TimeColumn:
    """Reads one file's times; with unit "auto" the median of the file's first times decides.

    Numbers are unix seconds or milliseconds, fractions allowed. Dates (Parquet's types, or ISO 8601
    text such as 2026-11-22T03:15:00Z) need no unit and are UTC unless they say otherwise.
    """

    def __init__(self, unit: TimeUnit) -> None:
        self._unit = unit

    @property
    def unit(self) -> TimeUnit:
        """The unit of numbers, "auto" as long as none has been seen."""
        return self._unit

    @property
    def unit_name(self) -> str:
        """The unit as people call it."""
        return "milliseconds" if self._unit == "ms" else "seconds"

    def milliseconds(self, column: pa.Array) -> np.ndarray:
        """Unix milliseconds, UNREADABLE where there is no time.   (N,) -> (N,) int64"""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            return _dates(column)
        if _is_text(column.type):
            numbers, dates = _read_text(column)
        else:
            numbers, dates = _numbers(column), None
        known = np.isfinite(numbers)
        factor = self._factor(numbers[known])
        numbers = np.where(known, np.clip(np.rint(numbers * factor), -_LARGEST_MS, _LARGEST_MS), 0)
        fallback = np.int64(UNREADABLE) if dates is None else dates
        return np.where(known, numbers.astype(np.int64), fallback)

    def _factor(self, numbers: np.ndarray) -> int:
        """Milliseconds in a unit; decides the unit when it is open and there are numbers to decide by."""
        if self._unit == "auto" and len(numbers):
            self._unit = "ms" if np.median(numbers) >= _MILLISECONDS_FROM else "s"
        return 1 if self._unit == "ms" else 1000


def check_time_type(kind: pa.DataType, *, column: str, path: object) -> None:
    """Raise DataError unless a column of type `kind` can hold times."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp, pa.types.is_date, _is_text)
    if not any(check(value) for check in checks):
        raise DataError(f"{path}: column {column!r} has type {kind}; times must be numbers or dates: cast it")


def _is_text(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in checks)


def _dates(column: pa.Array) -> np.ndarray:
    column = column.cast(pa.timestamp("ms"), safe=False) if pa.types.is_date(column.type) else column
    zone = column.type.tz
    return column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64()).fill_null(UNREADABLE).to_numpy()


def _numbers(column: pa.Array) -> np.ndarray:
    """-> (N,) float64, NaN for null; exact up to 2**53, far beyond any date in milliseconds"""
    return column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)


def _read_text(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """-> numbers (N,) float64, NaN where the text is none; dates (N,) int64 milliseconds, else UNREADABLE"""
    try:
        return _numbers(column.cast(pa.string()).cast(pa.int64())), None
    except pa.ArrowInvalid:
        pass  # some row is no plain integer: look at each
    numbers = np.full(len(column), np.nan)
    dates = np.full(len(column), UNREADABLE, dtype=np.int64)
    texts = pc.fill_null(column.cast(pa.binary()), b"").to_pylist()
    for row, text in enumerate(texts):
        try:
            numbers[row] = float(text)
        except ValueError:
            dates[row] = _read_date(text)
    return numbers, dates


def _read_date(text: bytes) -> int:
    try:
        moment = datetime.fromisoformat(text.decode().strip())
    except ValueError:
        return UNREADABLE
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
