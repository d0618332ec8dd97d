"""One builder at a time: a file lock that ends with its holder, however it ends, and says who that is."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path


class LockHeldError(Exception):
    """Another builder is at work; the message says which and since when."""


@contextmanager
def builder_lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path`. Raises LockHeldError at once when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeldError(f"another builder is at work: {_holder(path)} holds {path}") from None
        handle.truncate(0)
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, handle)
        handle.flush()
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
    except (ValueError, KeyError, TypeError, OSError):
        return "one that has only just begun"
