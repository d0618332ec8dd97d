"""Where `setup.py` puts the native parts that it could build."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path

REMEDY = "install a C++ compiler (g++ or clang++) and install this package again"


def native_file(folder: Path, name: str) -> Path | None:
    """The shared library `name` in `folder`, or None where none was built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return path
    return None
