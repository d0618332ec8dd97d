"""The mutation check: its table fits the program, and it tells a watched guard from an unwatched one."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.errors import LoadtestError
from loadtest.stress.guard import Guard
from loadtest.stress.guards import GUARDS
from loadtest.stress.mutation import MIN_GUARDS, ROOT, copy_tree, judge, mutation_figures, occurrences
from loadtest.stress.outcome import Options, passed

WATCHED = Guard(
    "watched", "model/door.py", "    if not key:\n", "    if False:\n", "tests/test_door.py::test_key"
)
UNWATCHED = Guard(
    "unwatched", "model/door.py", "    if late:\n", "    if False:\n", "tests/test_door.py::test_key"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A program with two guards and a test of one of them."""
    root = tmp_path / "program"
    (root / "model").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (root / "model" / "door.py").write_text(
        "def enter(key, late=False):\n    if not key:\n        return False\n"
        "    if late:\n        return False\n    return True\n"
    )
    (root / "tests" / "test_door.py").write_text(
        "from model.door import enter\n\n\ndef test_key():\n    assert enter(1)\n    assert not enter(0)\n"
    )
    return root


def test_every_guard_stands_in_the_program_once_and_names_a_test_that_exists() -> None:
    for guard in GUARDS:
        assert occurrences(ROOT, guard) == 1, guard.name
        assert guard.without != guard.text
        path, _, test = guard.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / path).read_text(), guard.name
    assert len({guard.name for guard in GUARDS}) == len(GUARDS) >= MIN_GUARDS


def test_a_guard_that_a_test_watches_over_goes_red_and_another_one_does_not(tree: Path) -> None:
    figures = mutation_figures([WATCHED, UNWATCHED], Options(), root=tree)
    assert figures["green"] == ["unwatched"]
    assert not passed(figures["checks"])
    assert passed(mutation_figures([WATCHED], Options(), root=tree)["checks"])
    assert "if not key:" in (tree / "model" / "door.py").read_text(), "the tree itself is not touched"


def test_a_guard_that_is_gone_fails_the_check(tree: Path) -> None:
    gone = Guard("gone", "model/door.py", "    if barred:\n", "", WATCHED.test)
    figures = mutation_figures([WATCHED, gone], Options(), root=tree)
    assert figures["not_found"] == ["gone"]
    assert not passed(figures["checks"])


def test_tests_that_fail_with_the_guards_in_place_are_said(tree: Path) -> None:
    (tree / "tests" / "test_door.py").write_text("def test_key():\n    assert False\n")
    with pytest.raises(LoadtestError, match="fail with the guards in place"):
        mutation_figures([WATCHED], Options(), root=tree)


def test_a_guard_of_this_program_is_removed_for_real(tmp_path: Path) -> None:
    guard = next(guard for guard in GUARDS if guard.file == "service/structure.py")
    verdict = judge(copy_tree(ROOT, tmp_path / "tree"), guard)
    assert (verdict.red, verdict.status) == (True, 1)
