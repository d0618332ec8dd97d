"""What every stress test is asked and what it answers.

A stress test is a module of this package with a `NAME` and a `run(options) -> dict`; `loadtest.stress.run`
finds it by that alone. The dict holds the figures, and under `checks` what they are held to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Options:
    """short: the version that takes seconds   say: gets a line now and then

    seconds: length of what runs by the clock and has no natural end, in place of the full one
    """

    short: bool = False
    seconds: float | None = None
    say: Callable[[str], None] = lambda line: None


def check(name: str, value: float | None, limit: float) -> dict[str, Any]:
    """One line of `checks`: it holds where there is a value and it is at most `limit`."""
    return {"name": name, "value": value, "limit": limit, "passed": value is not None and value <= limit}


def passed(checks: Sequence[dict[str, Any]]) -> bool:
    """Whether all of them hold."""
    return all(one["passed"] for one in checks)
