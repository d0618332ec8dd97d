"""The candidates of one answer, best first: as lists, or as the JSON that goes out."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Protocol

import orjson


class CandidateList(Protocol):
    """item_ids: (K,)   scores: (K,) larger is better"""

    @property
    def item_ids(self) -> list[str]: ...
    @property
    def scores(self) -> list[float]: ...
    def __len__(self) -> int: ...
    def document(self) -> Any:
        """What orjson writes as the list of candidates."""


class Listed:
    """Candidates as lists."""

    def __init__(self, item_ids: Iterable[str], scores: Iterable[float]) -> None:
        self.item_ids, self.scores = list(item_ids), list(scores)

    def __len__(self) -> int:
        return len(self.item_ids)

    def document(self) -> Any:
        """One dict a candidate."""
        pairs = zip(self.item_ids, self.scores, strict=True)
        return [{"item_id": item_id, "score": score} for item_id, score in pairs]


class Written:
    """Candidates that the native library has written; the lists are made for whoever asks."""

    def __init__(self, json: bytes, count: int) -> None:
        self._json = json
        self._count = count

    def __len__(self) -> int:
        return self._count

    @cached_property
    def item_ids(self) -> list[str]:
        return [each["item_id"] for each in self._each]

    @cached_property
    def scores(self) -> list[float]:
        return [each["score"] for each in self._each]

    @cached_property
    def _each(self) -> list[dict[str, Any]]:
        each: list[dict[str, Any]] = orjson.loads(self._json)
        return each

    def document(self) -> Any:
        """As it was written."""
        return orjson.Fragment(self._json)
