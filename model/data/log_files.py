"""From paths to files, and from a file to the layout of its format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from model.data import kuairand, movielens
from model.data.event_log import CSV_SUFFIXES, PARQUET_SUFFIXES, Layout, column_names, has_suffix
from model.data.interactions import DataError

SUFFIXES = (*CSV_SUFFIXES, *PARQUET_SUFFIXES, movielens.SUFFIX)


def list_files(paths: Iterable[Path], format: str) -> list[Path]:
    """The files to read, in order: files as given, a folder's by path, whatever their depth.

    Of a MovieLens or KuaiRand folder only the ratings or the logs are taken (format "auto" knows the
    former by its movies file, the latter by the names and columns of its logs); of another folder
    every file with a known suffix. Raises DataError for a path that is missing or named twice, a
    suffix that is not known, and a folder without logs.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += _list_folder(path, format)
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif not has_suffix(path, SUFFIXES):
            raise DataError(
                f"{path}: unknown format; a log is one of {', '.join(SUFFIXES)}: rename or convert it"
            )
        else:
            files.append(path)
    if not files:
        raise DataError("no log was named: give at least one file or folder")
    seen: set[Path] = set()
    for path in files:
        if path.resolve() in seen:
            raise DataError(f"{path}: named twice: its rows would count twice")
        seen.add(path.resolve())
    return files


def _list_folder(folder: Path, format: str) -> list[Path]:
    if format in ("auto", "movielens") and (
        format == "movielens" or any((folder / mark).exists() for mark in movielens.FOLDER_MARKS)
    ):
        ratings = [folder / name for name in movielens.FOLDER_FILES if (folder / name).exists()]
        if ratings:
            return ratings[:1]
    if format in ("auto", "kuairand"):
        logs = sorted({path for pattern in kuairand.FOLDER_PATTERNS for path in folder.rglob(pattern)})
        if logs and (format == "kuairand" or kuairand.is_table(column_names(logs[0]))):
            return logs
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and has_suffix(path, SUFFIXES) and not _is_hidden(path.relative_to(folder))
    )
    if not files:
        raise DataError(f"{folder}: the folder holds no log ({', '.join(SUFFIXES)})")
    return files


def _is_hidden(path: Path) -> bool:
    """Whether a writer marked the file, or a folder above it, as not being data."""
    return any(part.startswith((".", "_")) for part in path.parts)


def detect_layout(path: Path, *, format: str, event_log: Layout) -> Layout:
    """How to read `path`.   event_log: the layout of a log that is neither MovieLens nor KuaiRand

    Format "auto" knows `ratings.dat` by its suffix, the others by their columns; an event log whose
    columns were mapped is never taken for another.
    """
    if has_suffix(path, (movielens.SUFFIX,)):
        if format not in ("auto", "movielens"):
            raise DataError(
                f"{path}: a {movielens.SUFFIX} file is read as movielens, but format is {format!r}"
            )
        return movielens.dat_layout(path)
    mapped = (event_log.user_column, event_log.item_column) != ("user_id", "item_id")
    mapped = mapped or event_log.timestamp_column != "timestamp"
    if format == "event_log" or (format == "auto" and mapped):
        return event_log
    names = column_names(path)
    if format == "movielens" or (format == "auto" and movielens.is_table(names)):
        return movielens.table_layout(names)
    if format == "kuairand" or (format == "auto" and kuairand.is_table(names)):
        return kuairand.table_layout(names)
    return event_log
