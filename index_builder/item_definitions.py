"""Reads what somebody knows of new items: CSV for tables, JSON Lines for weights and ids of any kind.

CSV has a column `item_id`, perhaps `similar_item_ids` (ids separated by |), and any further columns are
features: the value V of column C is the token C=V, several values being separated by |. A line of JSON is
{"item_id", "similar_item_ids": {id: weight} or [id, …], "features": [token, …]}.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index_builder.delta import DeltaError, NewItem, check_item

_SEPARATOR = "|"
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_FIELDS = {"item_id", "similar_item_ids", "features"}


def read_item_definitions(path: Path, *, complete: bool = True) -> list[NewItem]:
    """The items that a file defines.

    complete: False takes items without anything but an id too: their definition comes from elsewhere
    Raises DeltaError, naming file and line, for what is no definition, and OSError.
    """
    items: dict[str, NewItem] = {}
    rows = _read_json_lines(path) if path.suffix in _JSON_SUFFIXES else _read_csv(path)
    for line, item in rows:
        try:
            if complete or item.similar or item.features:
                check_item(item)
        except DeltaError as error:
            raise DeltaError(f"{path} line {line}: {error}") from None
        if item.item_id in items:
            raise DeltaError(f"{path} line {line}: item {item.item_id!r} is defined twice")
        items[item.item_id] = item
    if not items:
        raise DeltaError(f"{path} defines no item")
    return list(items.values())


def tokens_of(column: str, value: str) -> list[str]:
    """The feature tokens of one cell: `genre`, `Drama|War` -> genre=Drama, genre=War."""
    return [f"{column}={part.strip()}" for part in value.split(_SEPARATOR) if part.strip()]


def _read_csv(path: Path) -> Iterator[tuple[int, NewItem]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or []
            if "item_id" not in columns or len(set(columns)) != len(columns):
                raise DeltaError(f"{path}: the first line must name the columns, one of them item_id")
            features = [name for name in columns if name not in ("item_id", "similar_item_ids")]
            for row in reader:
                if None in row or None in row.values():
                    raise DeltaError(f"{path} line {reader.line_num}: it has not {len(columns)} fields")
                similar = [name.strip() for name in (row.get("similar_item_ids") or "").split(_SEPARATOR)]
                tokens = [token for name in features for token in tokens_of(name, row[name])]
                weights = dict.fromkeys(filter(None, similar), 1.0)
                yield reader.line_num, NewItem(row["item_id"], weights, tuple(tokens))
        except (csv.Error, UnicodeDecodeError) as error:
            raise DeltaError(f"{path} line {reader.line_num} or later cannot be read: {error}") from None


def _read_json_lines(path: Path) -> Iterator[tuple[int, NewItem]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, _from_document(json.loads(line))
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise DeltaError(f"{path} line {number}: it is no definition of an item: {error}") from None


def _from_document(document: Any) -> NewItem:
    if not isinstance(document, dict) or "item_id" not in document:
        raise ValueError("an object with item_id is needed")
    unknown = sorted(document.keys() - _FIELDS)
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a known field; known are {', '.join(sorted(_FIELDS))}")
    item_id, similar = document["item_id"], document.get("similar_item_ids") or {}
    if not isinstance(similar, dict):
        similar = dict.fromkeys((_text(name) for name in similar), 1.0)
    features = document.get("features") or []
    if isinstance(features, str):
        raise ValueError("features must be a list of tokens")
    return NewItem(_text(item_id), similar, tuple(features))


def _text(value: Any) -> Any:
    """An integer id as its decimal string, as in logs and requests."""
    return str(value) if type(value) is int else value
