"""Reading a log on a cluster: pieces are encoded by the nodes, and put together here in the log's order.

A piece is a CSV file, or consecutive row groups of a Parquet file. Each is read by `scan` and `LogEncoder`
as on one machine; `LogEncoder.add_part` numbers the ids as if all had been read here. Sorting and rules then
run here: the result is held in one machine's memory anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.bulk.block_fields import Fields
from model.bulk.cluster import Cluster
from model.bulk.shared_files import check_file
from model.data.bad_rows import BadRows
from model.data.encoding import EncodedPart, LogEncoder, PieceCodes
from model.data.event_log import PARQUET_SUFFIXES, Layout, has_suffix, rows_of_groups, scan
from model.data.interactions import DataError, Interactions, Rules
from model.data.log_files import list_files
from model.data.reader import ReadOptions, encoder_for, interactions_of, layout_of
from model.data.timestamps import UNREADABLE

_PIECE_ROWS = 1 << 20
_PART_ROWS = 1 << 21


@dataclass(frozen=True)
class Piece:
    """Part of a log that one node reads.

    path: as it was given   layout: number of the layout among those of the log
    row_groups: of a Parquet file; None for a whole file
    """

    path: Path
    layout: int
    row_groups: range | None

    def fields(self) -> Fields:
        """What `PieceReader` reads."""
        groups = range(0) if self.row_groups is None else self.row_groups
        path = self.path.absolute()
        return {
            "path": str(path),
            "size_bytes": path.stat().st_size,
            "layout": self.layout,
            "whole": int(self.row_groups is None),
            "first_group": groups.start,
            "last_group": groups.stop,
        }


def read_interactions_on(
    cluster: Cluster,
    paths: Sequence[Path | str],
    *,
    options: ReadOptions = ReadOptions(),
    rules: Rules = Rules(),
    progress: Callable[[int], None] | None = None,
    piece_rows: int = _PIECE_ROWS,
) -> Interactions:
    """What `read_interactions` gives, read by all nodes; they must see the same files at the same paths.

    piece_rows: of a Parquet file, about so many rows are read together
    Raises DataError as `read_interactions` does, BulkError when the cluster cannot read the log.
    """
    files = list_files([Path(path) for path in paths], options.format)
    options = replace(options, now=int(time.time()) if options.now is None else options.now)
    layouts: list[Layout] = []
    pieces: list[Piece] = []
    problem: DataError | None = None
    try:
        for path in files:
            layout = layout_of(path, options, previous=layouts[-1] if layouts else None)
            layouts += [] if layouts and layouts[-1] == layout else [layout]
            pieces += _pieces(path, len(layouts) - 1, piece_rows)
    except DataError as error:
        problem = error  # what is wrong with the rows before it is told first, as on one machine
    encoder = encoder_for(options)
    for part, codes in _parts(cluster, pieces, layouts, options):
        encoder.add_part(part, codes)
        if progress is not None:
            progress(encoder.bad_rows.rows)
    if problem is not None:
        raise problem
    return interactions_of(encoder, layouts[-1], num_files=len(files), rules=rules)


def _pieces(path: Path, layout: int, piece_rows: int) -> Iterator[Piece]:
    if not has_suffix(path, PARQUET_SUFFIXES):
        yield Piece(path, layout, None)
        return
    rows = rows_of_groups(path)
    first, num_rows = 0, 0
    for group, count in enumerate(rows):
        num_rows += count
        if num_rows >= piece_rows:
            yield Piece(path, layout, range(first, group + 1))
            first, num_rows = group + 1, 0
    if num_rows or not rows:
        yield Piece(path, layout, range(first, len(rows)))


def _parts(
    cluster: Cluster, pieces: Sequence[Piece], layouts: Sequence[Layout], options: ReadOptions
) -> Iterator[tuple[EncodedPart, PieceCodes]]:
    """All parts in the log's order, each with its piece's codes."""
    number, codes = -1, PieceCodes()
    arguments = {"layouts": list(layouts), "options": options}
    for fields in cluster.run(PieceReader, arguments, [piece.fields() for piece in pieces]):
        piece = pieces[fields["block"]]
        if fields["block"] != number:
            number, codes = fields["block"], PieceCodes()
        yield _part_of(fields), codes
        if fields["data_error"]:
            raise DataError(fields["data_error"].replace(str(piece.path.absolute()), str(piece.path)))


class PieceReader:
    """The worker: a piece in parts of some two million rows."""

    def __init__(self, layouts: Sequence[Layout], options: ReadOptions) -> None:
        self._layouts = layouts
        self._options = options

    def __call__(self, block: dict[str, Any]) -> Iterator[Fields]:
        path = Path(block["path"])
        check_file(path, block["size_bytes"])
        groups = None if block["whole"] else range(block["first_group"], block["last_group"])
        layout = _with_time_unit(self._layouts[block["layout"]], path, groups)
        encoder = LogEncoder(
            now=self._options.now or 0,
            max_bad_share=1.0,  # what is too much is told by the whole log
            skip_impossible_times=self._options.skip_impossible_times,
        )
        times = layout.times()
        problem = ""
        try:
            for batch in scan(path, layout, encoder.bad_rows, row_groups=groups):
                encoder.add(batch, path=path, layout=layout, times=times)
                if len(encoder) >= _PART_ROWS:
                    yield _fields_of(encoder.take_part(), "")
        except DataError as error:
            problem = str(error)
        yield _fields_of(encoder.take_part(), problem)


def _with_time_unit(layout: Layout, path: Path, groups: range | None) -> Layout:
    """The layout with the unit that the file's first times decide, for a piece that does not hold them."""
    if groups is None or groups.start == 0 or layout.time_unit != "auto" or not layout.timestamp_column:
        return layout
    times = layout.times()
    assert times is not None
    for batch in scan(path, layout, BadRows(1.0)):
        time_ms = times.milliseconds(batch.columns[layout.timestamp_column])
        if times.unit != "auto" or (time_ms != UNREADABLE).any():  # dates have no unit
            break
    return replace(layout, time_unit=times.unit)


def _fields_of(part: EncodedPart, data_error: str) -> Fields:
    return {**vars(part), "data_error": data_error}


def _part_of(fields: dict[str, Any]) -> EncodedPart:
    return EncodedPart(**{name: fields[name] for name in EncodedPart.__dataclass_fields__})
