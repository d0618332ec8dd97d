"""Reads a log of any size into Interactions.

Memory follows the number of rows, not the size of the files: a row costs 16 bytes while it is read
and about 40 at the peak, when the rows are sorted; 12 bytes a row remain. To that come the distinct
ids, about 150 bytes each, and some 60 MiB of the parsers' buffers. The text of the log is never in
memory as a whole, nor is any row a Python object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from model.data.encoding import LogEncoder
from model.data.event_log import Layout, scan
from model.data.interactions import DataError, Interactions, Rules
from model.data.log_files import detect_layout, list_files
from model.data.rules import apply_rules
from model.data.timestamps import TimeUnit

Format = Literal["auto", "event_log", "movielens", "kuairand"]


@dataclass(frozen=True)
class ReadOptions:
    """How a log is read.

    format: "auto" knows MovieLens and KuaiRand by their names and columns; all else is an event log
    user_column, item_column, timestamp_column: of an event log; an empty timestamp_column says that the
        log has no times and that its order is the order of events
    time_unit: of an event log: "s", "ms", or "auto": each file's median time decides
    max_bad_share: the share of unusable rows (wrong number of fields, unreadable time, an id that is not
        1-128 printable characters) beyond which a log is refused; fewer are left out and reported. The
        whole log is counted first, unless most of the first 100,000 rows or more are unusable
    now: unix seconds, the clock's when None; times later than a day after it lie in the future
    skip_impossible_times: times that are negative or in the future mostly come from a wrong unit or
        column and refuse the log at once; true counts such rows as unusable instead
    """

    format: Format = "auto"
    user_column: str = "user_id"
    item_column: str = "item_id"
    timestamp_column: str = "timestamp"
    time_unit: TimeUnit = "auto"
    max_bad_share: float = 0.01
    now: int | None = None
    skip_impossible_times: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("format", get_args(Format)), ("time_unit", get_args(TimeUnit))):
            if getattr(self, name) not in choices:
                raise DataError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.max_bad_share < 1:
            raise DataError(f"max_bad_share must be at least 0 and below 1, got {self.max_bad_share}")
        for name in ("user_column", "item_column"):
            if not getattr(self, name):
                raise DataError(f"{name} must name a column, got an empty string")


def read_interactions(
    paths: Sequence[Path | str],
    *,
    options: ReadOptions = ReadOptions(),
    rules: Rules = Rules(),
    progress: Callable[[int], None] | None = None,
) -> Interactions:
    """The interactions of one log, given as files or folders, after `rules`.

    progress: called after each batch with the number of rows read so far, of all files
    Raises DataError, one line for people, for anything that is wrong with the paths, the files, their
    rows or what the rules leave.
    """
    if isinstance(paths, str | Path):
        raise TypeError("paths must be a sequence of paths, got a single one")
    files = list_files([Path(path) for path in paths], options.format)
    encoder = encoder_for(options)
    layout: Layout | None = None
    for path in files:
        layout = layout_of(path, options, previous=layout)
        times = layout.times()
        for batch in scan(path, layout, encoder.bad_rows):
            encoder.add(batch, path=path, layout=layout, times=times)
            if progress is not None:
                progress(encoder.bad_rows.rows)
    assert layout is not None
    return interactions_of(encoder, layout, num_files=len(files), rules=rules)


def encoder_for(options: ReadOptions) -> LogEncoder:
    """An encoder that has read nothing yet."""
    return LogEncoder(
        now=int(time.time()) if options.now is None else options.now,
        max_bad_share=options.max_bad_share,
        skip_impossible_times=options.skip_impossible_times,
    )


def interactions_of(encoder: LogEncoder, layout: Layout, *, num_files: int, rules: Rules) -> Interactions:
    """What `encoder` has read of all files, after `rules`.   layout: of the last file"""
    rows = encoder.rows(layout)
    plural = "" if num_files == 1 else "s"
    note = f"{layout.format} format, {num_files:,} file{plural}, {encoder.note(layout)}"
    return apply_rules(
        rows, user_ids=encoder.users.ids(), item_ids=encoder.items.ids(), rules=rules, note=note
    )


def layout_of(path: Path, options: ReadOptions, *, previous: Layout | None) -> Layout:
    """How to read `path`.   previous: of the file before it

    Raises DataError for a file that cannot be read, or that is of another format than the one before it.
    """
    event_log = Layout(
        "event_log", options.user_column, options.item_column, options.timestamp_column, options.time_unit
    )
    layout = detect_layout(path, format=options.format, event_log=event_log)
    if previous is not None and layout.format != previous.format:
        raise DataError(
            f"{path}: looks like {layout.format}, but the file before it like {previous.format}: "
            "read one log at a time, or set --format"
        )
    return layout
