"""The package installs without a C++ compiler, and with one it carries the library."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _build(folder: Path, **environment: str) -> list[Path]:
    """What `setup.py build_ext` leaves in `folder`."""
    pytest.importorskip("setuptools")
    subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            "--build-lib",
            folder / "lib",
            "--build-temp",
            folder / "o",
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        timeout=280,
    )
    return sorted((folder / "lib").rglob("native_tower*"))


def test_installing_without_a_compiler_succeeds(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-such-compiler")
    assert _build(tmp_path, CC=missing, CXX=missing, LDSHARED=missing) == []


def test_a_compiler_that_knows_no_avx_leaves_the_portable_variant(tmp_path: Path) -> None:
    """As an old one would: any instruction set option is an error."""
    real = shutil.which("g++")
    if real is None:
        pytest.skip("no C++ compiler here")
    old = tmp_path / "old-compiler"
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mavx*) exit 1;; esac\nexec {real} "$@"\n')
    old.chmod(0o755)
    (built,) = _build(tmp_path, CC=str(old), CXX=str(old))
    code = f"""
from pathlib import Path
from model.engines.native_library import NativeLibrary
print(NativeLibrary(Path({str(built)!r})).variants)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "['portable']"
