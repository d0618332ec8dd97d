"""Logs on disk for the reader's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.data.interactions import Interactions, Rules
from model.data.reader import ReadOptions, read_interactions

NOW = 1_800_000_000
KEEP_ALL = Rules(min_interactions=1)

WriteText = Callable[[str, str], Path]
Read = Callable[..., Interactions]


@pytest.fixture
def write_text(tmp_path: Path) -> WriteText:
    """write_text(name, text) -> the path of the new file"""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write


@pytest.fixture
def read() -> Read:
    """read(*paths, rules=..., **options) -> Interactions, with a fixed clock and no minimum unless told"""

    def call(*paths: Path, rules: Rules = KEEP_ALL, **options: object) -> Interactions:
        return read_interactions(paths, options=ReadOptions(**{"now": NOW, **options}), rules=rules)

    return call


@pytest.fixture
def rows_of() -> Callable[[Interactions], list[tuple[str, str, int]]]:
    """rows_of(interactions) -> (user id, item id, timestamp) of each row, in their order"""

    def rows(interactions: Interactions) -> list[tuple[str, str, int]]:
        found = []
        for user, user_id in enumerate(interactions.user_ids):
            sequence = interactions.sequence(user)
            for item_index, timestamp in zip(sequence.item_index, sequence.timestamp, strict=True):
                found.append((user_id, interactions.item_ids[item_index - 1], int(timestamp)))
        return found

    return rows
