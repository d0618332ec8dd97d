"""What features say of an item's embedding: one small vector a token, fitted by ridge regression.

X W ≈ Y: X (M, F) which tokens an item has, Y (M, D) the items' embeddings without their popularity and less
their mean, W (F, D) what is stored with the bundle. The penalty shrinks what few items speak for.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import titles
from index_builder.item_definitions import tokens_of
from index_builder.item_ids import ItemIds
from index_builder.mapped_tensors import map_tensors, write_tensors

MAX_TOKENS = 20_000
MIN_ITEMS = 2
RIDGE = 10.0
_MAX_FITTED = 200_000
_NUM_STEPS = 30


@dataclass(frozen=True)
class ItemFeatures:
    """tokens: (F,)   embeddings: (F, D) what each adds   mean: (D,) what an item has without any"""

    tokens: Sequence[str]
    embeddings: np.ndarray
    mean: np.ndarray
    row_of: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_of", {token: row for row, token in enumerate(self.tokens)})

    def direction(self, features: Iterable[str]) -> np.ndarray | None:
        """Where an item with these tokens lies across popularity, (D,); None when none is known."""
        rows = [self.row_of[token] for token in set(features) if token in self.row_of]
        return self.mean + self.embeddings[rows].sum(axis=0) if rows else None


def read_catalogue(path: Path) -> dict[str, list[str]]:
    """Item id -> tokens, from CSV or Parquet with the column `item_id`; all others but `title` are features.

    Raises ValueError, one line, for a file that is none.
    """
    if not path.is_file():
        raise ValueError(f"catalogue {path} is not a file")
    rows = _parquet_rows(path) if path.suffix in (".parquet", ".pq") else _csv_rows(path)
    catalogue: dict[str, list[str]] = {}
    for row in rows:
        tokens: list[str] = []
        for column, value in row.items():
            values = value if isinstance(value, list) else [value]
            if column not in ("item_id", titles.COLUMN):
                tokens += [
                    token for one in values if one is not None for token in tokens_of(column, str(one))
                ]
        catalogue[str(row["item_id"])] = tokens
    if not catalogue:
        raise ValueError(f"catalogue {path} lists no item")
    return catalogue


def fit_features(
    across: np.ndarray, tokens: Sequence[Sequence[str]], *, ridge: float = RIDGE
) -> ItemFeatures:
    """across: (M, D) embeddings without their popularity   tokens: of each of these items

    Raises ValueError when no token is shared by MIN_ITEMS items.
    """
    step = -(-len(across) // _MAX_FITTED)
    across, tokens = across[::step], tokens[::step]
    counts = Counter(token for of_item in tokens for token in set(of_item))
    kept = [token for token, count in counts.most_common(MAX_TOKENS) if count >= MIN_ITEMS]
    if not kept:
        raise ValueError(
            f"catalogue: no feature is shared by {MIN_ITEMS} of the items: name features, not ids"
        )
    row_of = {token: row for row, token in enumerate(kept)}
    pairs = [(m, row_of[t]) for m, of_item in enumerate(tokens) for t in set(of_item) if t in row_of]
    item, token = np.array(pairs, dtype=np.int64).T  # (P,), (P,)
    described = np.unique(item)
    mean = across[described].mean(axis=0)
    embeddings = _ridge(item, token, across - mean, len(kept), ridge)
    return ItemFeatures(kept, embeddings.astype(np.float32), mean.astype(np.float32))


def write_features(path: Path, features: ItemFeatures) -> None:
    """Write them as a safetensors file."""
    keys = [token.encode() for token in features.tokens]
    tensors: dict[str, np.ndarray] = {
        "text": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "offset": np.cumsum([0, *map(len, keys)], dtype=np.int64),  # (F + 1,) as in item ids
        "embeddings": features.embeddings,
        "mean": features.mean,
    }
    write_tensors(path, tensors)


def read_features(path: Path, dim: int) -> ItemFeatures:
    """The inverse. Raises ValueError or KeyError for anything else, or for another number of dimensions."""
    arrays = map_tensors(path)
    tokens = list(ItemIds(arrays["text"], arrays["offset"]))
    embeddings, mean = arrays["embeddings"], arrays["mean"]
    if embeddings.shape != (len(tokens), dim) or mean.shape != (dim,):
        raise ValueError(f"{len(tokens)} tokens have embeddings of shape {embeddings.shape}")
    return ItemFeatures(tokens, embeddings, mean)


def _ridge(
    item: np.ndarray, token: np.ndarray, target: np.ndarray, num_tokens: int, ridge: float
) -> np.ndarray:
    """W of (XᵀX + ridge) W = Xᵀ Y by conjugate gradients, all columns at once.

    item, token: (P,) where X is one   target: (M, D)   -> (F, D)
    """

    def per_item(weights: np.ndarray) -> np.ndarray:
        return _sums(weights[token], item, len(target))

    def per_token(values: np.ndarray) -> np.ndarray:
        return _sums(values[item], token, num_tokens)

    weights = np.zeros((num_tokens, target.shape[1]))
    residual = per_token(target.astype(np.float64))
    search, power = residual.copy(), (residual**2).sum(axis=0)
    for _ in range(_NUM_STEPS):
        moved = per_token(per_item(search)) + ridge * search
        rate = power / np.maximum((search * moved).sum(axis=0), 1e-30)
        weights += rate * search
        residual -= rate * moved
        before, power = power, (residual**2).sum(axis=0)
        search = residual + power / np.maximum(before, 1e-30) * search
    return weights


def _sums(values: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """values: (P, D)   group: (P,)   -> (count, D) the sum of each group"""
    return np.stack([np.bincount(group, column, minlength=count) for column in values.T], axis=1)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            if "item_id" not in (reader.fieldnames or []):
                raise ValueError(f"catalogue {path}: the first line names no column item_id")
            for row in reader:
                if None in row or row["item_id"] in (None, ""):
                    raise ValueError(
                        f"catalogue {path} line {reader.line_num}: it does not fit the first line"
                    )
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"catalogue {path} line {reader.line_num} cannot be read: {error}") from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            if "item_id" not in file.schema_arrow.names:
                raise ValueError(f"catalogue {path} has no column item_id")
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"catalogue {path} cannot be read: {' '.join(str(error).split())}") from None
