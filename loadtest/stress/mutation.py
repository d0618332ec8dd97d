"""Mutation check: every guard is removed in turn, and the test that watches over it must go red.

The tree is copied once; each guard is taken out of the copy, its test is run there, and it is put back. A
guard whose text is not there, or is there twice, fails the check as well: the table follows the program.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.stress.guards import GUARDS, Guard
from loadtest.stress.outcome import Options, check

NAME = "mutation"
MIN_GUARDS = 25
ROOT = Path(__file__).parents[2]
_COPIED = (
    "model",
    "index_builder",
    "service",
    "loadtest",
    "tests",
    "deploy",
    "docs",
    "pyproject.toml",
    "README.md",
)
_TIMEOUT_S = 300
_FAILED = 1
"""pytest's exit status when tests ran and some failed; 2 to 5 are no verdict."""


@dataclass(frozen=True)
class Verdict:
    """What became of one guard.   red: its test failed without it   status: pytest's"""

    guard: Guard
    red: bool
    status: int


def run(options: Options) -> dict[str, Any]:
    """All guards; short: three of them."""
    guards = GUARDS[:: max(1, len(GUARDS) // 3)] if options.short else GUARDS
    return mutation_figures(guards, options)


def mutation_figures(guards: Sequence[Guard], options: Options, root: Path = ROOT) -> dict[str, Any]:
    """The figures of these guards in the tree at `root`, and the checks on them."""
    lost = [guard.name for guard in guards if occurrences(root, guard) != 1]
    with tempfile.TemporaryDirectory(prefix="t2diff-mutation-") as folder:
        tree = copy_tree(root, Path(folder) / "tree")
        present = [guard for guard in guards if guard.name not in lost]
        sound = run_tests(tree, sorted({guard.test for guard in present}))
        if sound != 0:
            raise LoadtestError(f"the tests of the guards fail with the guards in place: status {sound}")
        verdicts = []
        for guard in present:
            verdicts.append(judge(tree, guard))
            options.say(f"{'red   ' if verdicts[-1].red else 'GREEN '} {guard.name}")
    green = [verdict.guard.name for verdict in verdicts if not verdict.red]
    return {
        "num_guards": len(guards),
        "guards": {verdict.guard.name: verdict.guard.test for verdict in verdicts},
        "not_found": lost,
        "green": green,
        "checks": [
            check("guards that no test watches over", len(green), 0),
            check("guards whose text is not there once", len(lost), 0),
            check("guards missing of the table's least", max(0, MIN_GUARDS - len(GUARDS)), 0),
        ],
    }


def occurrences(root: Path, guard: Guard) -> int:
    """How often the guard's text stands in its file."""
    path = root / guard.file
    return path.read_text().count(guard.text) if path.is_file() else 0


def copy_tree(root: Path, to: Path) -> Path:
    """The program and its tests, as they are on disk, compiled parts too."""
    to.mkdir()
    for name in _COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copyfile(source, to / name)
    return to


def judge(tree: Path, guard: Guard) -> Verdict:
    """Take the guard out of the tree, run its test, put it back."""
    with without(tree, guard):
        status = run_tests(tree, [guard.test])
    return Verdict(guard, status == _FAILED, status)


@contextmanager
def without(tree: Path, guard: Guard) -> Iterator[None]:
    """The tree lacks the guard meanwhile."""
    path = tree / guard.file
    whole = path.read_text()
    path.write_text(whole.replace(guard.text, guard.without))
    try:
        yield
    finally:
        path.write_text(whole)


def run_tests(tree: Path, nodes: Sequence[str]) -> int:
    """pytest's exit status on these nodes of the tree; a run that does not end counts as failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=60", *nodes]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return _FAILED
        finally:  # a test that was cut off leaves the servers that it started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
