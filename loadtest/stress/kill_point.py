"""SIGKILL from within: a process that ends itself just before its n-th file operation, and tidies nothing up.

What counts: opening for writing, renaming, linking, removing, making and removing folders below a path, as
Python announces them to its audit hooks, and in this thread whatever brings buffered bytes to the disk. What
a C library writes (FAISS, safetensors) has such points before and after; moments inside are for random kills.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_CHANGES = frozenset(
    {
        *("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"),
        *("shutil.copyfile", "shutil.move", "shutil.rmtree"),
    }
)
_FLUSHES = frozenset({"flush", "close", "__exit__", "truncate"})


def kill_before(number: int, *, under: Path) -> Callable[[], int]:
    """Arm this process; returns what tells how many it has counted.   number: from 1; 0 only counts"""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in _CHANGES:
            return
        if any(isinstance(a, str | Path) and str(a).startswith(str(under)) for a in arguments):
            count()

    def profile(frame: object, event: str, function: object) -> None:
        if event != "c_call":
            return
        name, file = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if name == "fsync" or (name in _FLUSHES and isinstance(file, io.IOBase) and file.writable()):
            count()

    sys.addaudithook(audit)
    sys.setprofile(profile)
    return lambda: seen
