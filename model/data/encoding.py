"""From record batches to compact columns: filter, encode the ids, read the times, set bad rows aside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.data.bad_rows import BadRows
from model.data.event_log import Layout, LogBatch
from model.data.growing_column import GrowingColumn
from model.data.interactions import DataError
from model.data.rules import Rows
from model.data.timestamps import UNREADABLE, TimeColumn
from model.data.vocabulary import UNUSABLE, Vocabulary, id_problem

_DAY_MS = 86_400_000
_HOPELESS_ROWS = 100_000
_HOPELESS_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """Some rows of a piece of a log, encoded by themselves: what `LogEncoder.add_part` puts together again.

    user, item: (R,) int32 codes of the piece   time_ms: (R,) int64, empty for a log without times
    user_ids, item_ids: the piece's ids since the part before, whose codes go on from there
    num_kept, num_rows, num_bad, first_bad: what was counted since the part before
    """

    user: np.ndarray
    item: np.ndarray
    time_ms: np.ndarray
    user_ids: list[str]
    item_ids: list[str]
    num_kept: int
    num_rows: int
    num_bad: int
    first_bad: str


class PieceCodes:
    """What the codes of one piece are in the whole log's vocabularies.   users, items: (ids so far,) int32"""

    def __init__(self) -> None:
        self.users = np.empty(0, dtype=np.int32)
        self.items = np.empty(0, dtype=np.int32)


class LogEncoder:
    """Takes in a log batch by batch and keeps 16 bytes a row.

    now: unix seconds   max_bad_share, skip_impossible_times: as in ReadOptions
    """

    def __init__(self, *, now: int, max_bad_share: float, skip_impossible_times: bool) -> None:
        self.users = Vocabulary()
        self.items = Vocabulary()
        self.bad_rows = BadRows(max_bad_share)
        self._now = now
        self._hopeless_share = max(_HOPELESS_SHARE, max_bad_share)
        self._skip_impossible_times = skip_impossible_times
        self._num_kept = 0
        self._num_told = (0, 0)  # users, items whose ids a part has told
        self._user = GrowingColumn(np.int32)
        self._item = GrowingColumn(np.int32)
        self._time_ms = GrowingColumn(np.int64)

    def add(self, batch: LogBatch, *, path: Path, layout: Layout, times: TimeColumn | None) -> None:
        """Take in a batch of the file `path`.   Raises DataError for an impossible time, or a hopeless log"""
        batch, num_filtered = _selected(batch, layout)
        user = self.users.encode(batch.columns[layout.user_column])
        item = self.items.encode(batch.columns[layout.item_column])
        usable = (user != UNUSABLE) & (item != UNUSABLE)
        if times is not None:
            time_ms = times.milliseconds(batch.columns[layout.timestamp_column])
            usable &= time_ms != UNREADABLE
            possible = (time_ms >= 0) & (time_ms <= self._now * 1000 + _DAY_MS)
            if not self._skip_impossible_times and (usable & ~possible).any():
                row = int(np.argmax(usable & ~possible))
                problem = self._time_problem(batch, row, layout=layout, times=times)
                raise DataError(f"{path} {batch.place(row)}: {problem}")
            usable &= possible
            self._time_ms.append(time_ms[usable])
        self._user.append(user[usable])
        self._item.append(item[usable])
        self._num_kept += len(usable)
        self._count(usable, num_filtered, batch, path=path, layout=layout, times=times)

    def __len__(self) -> int:
        return len(self._user)

    def take_part(self) -> EncodedPart:
        """The rows, ids and counts since the last part."""
        num_rows, num_bad, first_bad = self.bad_rows.take()
        num_kept, self._num_kept = self._num_kept, 0
        told_users, told_items = self._num_told
        self._num_told = (len(self.users), len(self.items))
        return EncodedPart(
            self._user.take(),
            self._item.take(),
            self._time_ms.take(),
            self.users.ids()[told_users:],
            self.items.ids()[told_items:],
            num_kept,
            num_rows,
            num_bad,
            first_bad,
        )

    def add_part(self, part: EncodedPart, codes: PieceCodes) -> None:
        """Take in what another encoder read of a piece: the same ids, rows and counts as by reading it here.

        codes: of that piece, empty at its first part; parts and pieces must come in the log's order
        Raises DataError for a hopeless log.
        """
        new_users = self.users.encode(pa.array(part.user_ids, pa.string()))
        new_items = self.items.encode(pa.array(part.item_ids, pa.string()))
        codes.users = np.concatenate([codes.users, new_users])
        codes.items = np.concatenate([codes.items, new_items])
        self._user.append(codes.users[part.user])
        self._item.append(codes.items[part.item])
        self._time_ms.append(part.time_ms)
        self._num_kept += part.num_kept
        self.bad_rows.add_counts(part.num_rows, part.num_bad, part.first_bad)
        self._refuse_if_hopeless()

    def rows(self, layout: Layout) -> Rows:
        """All usable rows, in file order; the encoder is empty of rows afterwards.

        Raises DataError when there are none, or too many bad ones.
        """
        self.bad_rows.check()
        if not len(self._user):
            found = (
                f"{self.bad_rows.rows:,} rows, none with {layout.condition}"
                if self.bad_rows.rows
                else "no rows"
            )
            raise DataError(f"the log has {found}: there is nothing to read")
        time_ms = self._time_ms.take() if layout.timestamp_column else None
        return Rows(self._user.take(), self._item.take(), time_ms)

    def note(self, layout: Layout) -> str:
        """What was read and what was left out, for the report."""
        kept = f"{self._num_kept:,} rows with {layout.condition}" if layout.keep else ""
        parts = (f"{self.bad_rows.rows:,} rows", kept, self.bad_rows.note())
        return "; ".join(part for part in parts if part)

    def _count(
        self,
        usable: np.ndarray,
        num_filtered: int,
        batch: LogBatch,
        *,
        path: Path,
        layout: Layout,
        times: TimeColumn | None,
    ) -> None:
        bad = np.flatnonzero(~usable)

        def first() -> tuple[str, str]:
            row = int(bad[0])
            problem = _id_problem(batch, row, layout)
            if not problem and times is not None:
                problem = self._time_problem(batch, row, layout=layout, times=times)
            return batch.place(row), problem

        self.bad_rows.add(len(bad), path, first)
        self.bad_rows.add_good(len(usable) - len(bad) + num_filtered)
        self._refuse_if_hopeless()

    def _refuse_if_hopeless(self) -> None:
        if self.bad_rows.rows >= _HOPELESS_ROWS:
            self.bad_rows.check(self._hopeless_share)

    def _time_problem(self, batch: LogBatch, row: int, *, layout: Layout, times: TimeColumn) -> str:
        values = batch.columns[layout.timestamp_column][row : row + 1]
        time_ms = int(times.milliseconds(values)[0])
        shown = f"{layout.timestamp_column} {_shown(values[0])}"
        if time_ms == UNREADABLE:
            return f"{shown} is no time (unix seconds, milliseconds or an ISO 8601 date)"
        now = datetime.fromtimestamp(self._now, UTC).strftime("%Y-%m-%d %H:%M UTC")
        fault = "is negative (before 1970)" if time_ms < 0 else f"lies more than a day after now ({now})"
        return (
            f"{shown}, read as {times.unit_name}, {fault}: correct the row, set --time-unit, "
            "or leave such rows out with --skip-impossible-times"
        )


def _selected(batch: LogBatch, layout: Layout) -> tuple[LogBatch, int]:
    """The rows that the layout keeps, and how many it does not."""
    if not layout.keep:
        return batch, 0
    kept = np.ones(len(batch.columns[layout.user_column]), dtype=bool)
    for name, value in layout.keep:
        kept &= _equals(batch.columns[name], value)
    rows = np.flatnonzero(kept)
    columns = {name: column.take(pa.array(rows)) for name, column in batch.columns.items()}
    return LogBatch(columns, lambda row: batch.place(int(rows[row]))), len(kept) - len(rows)


def _equals(column: pa.Array, value: int) -> np.ndarray:
    """Where a column of numbers, truth values or text holds `value`.   -> (N,) bool"""
    numeric = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating)
    if any(check(column.type) for check in numeric):
        same = pc.equal(column.cast(pa.float64()), float(value))
    else:
        same = pc.equal(column.cast(pa.binary()), str(value).encode())
    return same.fill_null(False).to_numpy(zero_copy_only=False)


def _id_problem(batch: LogBatch, row: int, layout: Layout) -> str:
    for column in (layout.user_column, layout.item_column):
        problem = id_problem(batch.columns[column][row].as_py())
        if problem:
            return f"{column} {problem}"
    return ""


def _shown(value: pa.Scalar) -> str:
    plain = value.as_py()
    text = plain.decode("utf-8", errors="replace") if isinstance(plain, bytes) else str(plain)
    return repr(text[:40])
