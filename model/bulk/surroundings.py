"""What a node must have in common with the machine that gives it work, for equal results to the last bit."""

from __future__ import annotations

import hashlib
import importlib
import platform
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch


class BulkError(ValueError):
    """Work that the cluster cannot do: one line with what is wrong, where, and the remedy."""


def surroundings_of(worker: Callable[..., Any]) -> dict[str, str]:
    """Versions, and the digest of the source of `model` and of the worker's own package."""
    packages = {"model", worker.__module__.partition(".")[0]}
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "CPU instructions": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        **{f"source of {name}": _source_digest(name) for name in sorted(packages)},
    }


def surroundings_problem(expected: dict[str, str], found: dict[str, str]) -> str:
    """What differs here from where the work comes from, in words; empty when nothing does."""
    for name, value in expected.items():
        if found.get(name) != value:
            return (
                f"--ray: node {socket.gethostname()} has {name} {found.get(name)}, and {value} is where the "
                "job was started: give every node the same version of t2diff-recall and its requirements"
            )
    return ""


def _source_digest(package: str) -> str:
    """SHA-256 over the package's Python files, shortened."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\x00".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
