"""What items are called, for people: an optional file of the bundle, mapped like the item ids."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from index_builder.item_ids import ItemIds
from index_builder.mapped_tensors import map_tensors, write_tensors

COLUMN = "title"
MAX_LENGTH = 300


def read_titles(path: Path) -> dict[str, str]:
    """Item id -> title, from the columns `item_id` and `title` of a catalogue; empty without that column.

    Raises ValueError, one line, for a file that cannot be read.
    """
    try:
        if path.suffix in (".parquet", ".pq"):
            if COLUMN not in pq.read_schema(path).names:
                return {}
            table = pq.read_table(path, columns=["item_id", COLUMN])
            pairs: Iterable[tuple[object, object]] = zip(
                table["item_id"].to_pylist(), table[COLUMN].to_pylist(), strict=True
            )
            return _titles(pairs)
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.DictReader(handle)
            if COLUMN not in (rows.fieldnames or ()):
                return {}
            return _titles((row["item_id"], row[COLUMN]) for row in rows)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"catalogue {path} cannot be read: {error}") from None


def write_titles(path: Path, item_ids: Sequence[str], titles: Mapping[str, str]) -> None:
    """One title per row of the model, empty where there is none."""
    texts = [titles.get(item_id, "").encode() for item_id in item_ids]
    offset = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offset[1:])
    text = np.frombuffer(b"".join(chain(texts, [b" "])), dtype=np.uint8)  # never empty: no file holds nothing
    write_tensors(path, {"text": text, "offset": offset})


def map_titles(path: Path, num_items: int) -> Sequence[str]:
    """Titles by row. Raises ValueError or KeyError when the file does not fit."""
    arrays = map_tensors(path)
    text, offset = arrays["text"], arrays["offset"]
    if (
        (text.dtype, offset.dtype) != (np.uint8, np.int64)
        or len(offset) != num_items + 1
        or (int(offset[0]), int(offset[-1])) != (0, len(text) - 1)
        or bool((offset[1:] < offset[:-1]).any())
    ):
        raise ValueError(f"titles do not fit {num_items} items")
    return ItemIds(text, offset)


def _titles(pairs: Iterable[tuple[object, object]]) -> dict[str, str]:
    return {str(item_id): " ".join(str(title).split())[:MAX_LENGTH] for item_id, title in pairs if title}
