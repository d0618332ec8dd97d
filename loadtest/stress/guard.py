"""A guard that the mutation check removes, and the test that must go red then.

A guard is a few lines of the program as they stand there. What replaces them is the program without it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """file: from the root of the tree   text: stands in it exactly once   without: what it becomes

    test: a pytest node that fails without the guard
    """

    name: str
    file: str
    text: str
    without: str
    test: str
