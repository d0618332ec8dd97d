"""model/PAPER.md points at functions that are there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAPER = (Path(__file__).parents[2] / "model" / "PAPER.md").read_text()
EQUATIONS = PAPER.partition("## Equations")[2].partition("\n## ")[0]
FUNCTIONS = re.findall(r"`((?:\w+\.)+\w+)`", EQUATIONS)


@pytest.mark.parametrize("pointer", dict.fromkeys(FUNCTIONS))
def test_what_an_equation_points_at_exists(pointer: str) -> None:
    module, *names = pointer.split(".")
    found = importlib.import_module(f"model.{module}")
    for name in names:
        found = getattr(found, name)
    assert callable(found)
