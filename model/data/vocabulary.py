"""Ids to consecutive numbers, batch by batch, refusing the ids that the service could not be asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.data.interactions import DataError

MAX_ID_CHARACTERS = 128
"""The HTTP contract's limit: an id is 1-128 printable characters."""

UNUSABLE = -1
"""The code of an id that breaks the contract."""


class Vocabulary:
    """Ids in order of first appearance.

    Only a batch's distinct ids become Python objects, and only new ones stay: about 150 bytes each.
    """

    def __init__(self) -> None:
        self._code_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._code_of)

    def encode(self, column: pa.Array) -> np.ndarray:
        """Codes 0.. of a column of strings or integers, UNUSABLE where the id is.   (N,) -> (N,) int32

        An integer is taken as its decimal string; text is taken as it is, leading zeros and all.
        """
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        codes = np.array([self._code(value) for value in encoded.dictionary.to_pylist()], dtype=np.int32)
        codes = np.append(codes, np.int32(UNUSABLE))  # where a null points: index -1
        return codes[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def ids(self) -> list[str]:
        """The ids by code."""
        return list(self._code_of)

    def _code(self, value: object) -> int:
        name = _text(value)
        code = self._code_of.get(name)
        if value is None or (code is None and id_problem(value)):
            return UNUSABLE
        if code is None:
            code = self._code_of[name] = len(self._code_of)
        return code


def id_problem(value: object) -> str:
    """What is wrong with an id, in words, or an empty string."""
    if value is None:
        return "is missing"
    name = _text(value)
    if not name:
        return "is empty"
    if len(name) > MAX_ID_CHARACTERS:
        return f"{name[:20]!r}... has {len(name)} characters; at most {MAX_ID_CHARACTERS} are allowed"
    if not name.isprintable():
        return f"{name!r} has characters that cannot be printed or are not UTF-8"
    return ""


def check_id_type(kind: pa.DataType, *, column: str, path: object) -> None:
    """Raise DataError unless a column of type `kind` can hold ids."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    textual = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    if not any(check(value) for check in (*textual, *binary, pa.types.is_integer)):
        raise DataError(
            f"{path}: column {column!r} has type {kind}; ids must be strings or integers: cast the column"
        )


def _text(value: object) -> str:
    return value.decode("utf-8", errors="surrogateescape") if isinstance(value, bytes) else str(value)
