"""Temporary folders whose owner holds a lock: what a killed owner left can be told, and removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def owned_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """An empty folder that is removed at the end, and found by `abandoned_folders` after a kill.

    Its owner holds a lock on the folder itself, so that nothing but the owner's files is in it.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    owner = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)


def abandoned_folders(prefix: str, parent: Path, *, min_age_s: float = 0.0) -> list[Path]:
    """Folders of that prefix whose owner is dead and that nobody changed for `min_age_s`."""
    return [
        folder
        for folder in parent.glob(f"{prefix}*")
        if _age_s(folder) >= min_age_s and not is_locked(folder)
    ]


def is_locked(folder: Path) -> bool:
    """Whether a process on this machine holds a lock on a folder; false where the system cannot tell."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0
