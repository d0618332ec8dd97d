"""Where `setup.py` puts the native parts that it could build, and what becomes of one that cannot be used."""

from __future__ import annotations

import importlib.machinery
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Library = TypeVar("Library")
_LOGGER = logging.getLogger(__name__)

REMEDY = "install a C++ compiler (g++ or clang++) and install this package again"


def native_file(folder: Path, name: str) -> Path | None:
    """The shared library `name` in `folder`, or None where none was built."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.exists():
            return path
    return None


def open_if_usable(
    folder: Path, name: str, open_library: Callable[[Path], Library], *, instead: str
) -> Library | None:
    """The opened library; None where none was built, or with a warning where it cannot be used here.

    open_library: raises OSError, AttributeError or ValueError   instead: what the warning says is done
    """
    path = native_file(folder, name)
    if path is None:
        return None
    try:
        return open_library(path)
    except (OSError, AttributeError, ValueError) as error:
        _LOGGER.warning("%s is not used, %s instead: %s; %s", path, instead, error, REMEDY)
        return None
