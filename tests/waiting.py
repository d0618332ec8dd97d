"""Waiting for what another process does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import httpx

PATIENCE_S = 60.0
"""Far longer than anything takes on a busy machine: no test passes or fails by how fast it is."""


def eventually(check: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Look again and again until `check()` is true; AssertionError with `what` when it never is.

    A call that finds nobody listening counts as not yet true.
    """
    give_up_at = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(httpx.TransportError):
            if check():
                return
        assert time.monotonic() < give_up_at, what
        time.sleep(0.02)
