"""Blocks of work as Arrow tables of one row: named arrays, lists of strings, numbers, texts and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

Fields = Mapping[str, Any]
"""name -> (N,) array, list of strings, int, str or bytes"""


def to_table(fields: Fields) -> pa.Table:
    """One row; arrays are not copied."""
    return pa.table({name: _column(value) for name, value in fields.items()})


def from_table(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The fields of each row; numbers come back as arrays that must not be written to."""
    for row in range(len(table)):
        yield {name: _value(table.column(name)[row]) for name in table.column_names}


def _column(value: Any) -> pa.Array:
    if isinstance(value, np.ndarray | list):
        texts = isinstance(value, list)
        values = pa.array(value, pa.large_string()) if texts else pa.array(value)
        return pa.LargeListArray.from_arrays(pa.array([0, len(value)], pa.int64()), values)
    kinds = {int: pa.int64(), str: pa.large_string(), bytes: pa.large_binary()}
    return pa.array([value], kinds[type(value)])


def _value(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid or not pa.types.is_large_list(scalar.type):
        return scalar.as_py()
    if pa.types.is_large_string(scalar.type.value_type):
        return scalar.as_py()
    return scalar.values.to_numpy()
