"""Pitfalls that are a matter of how the program is written; docs/pitfalls.md names a test for each."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELIABILITY = (ROOT / "docs" / "pitfalls.md").read_text()
NAMED = re.findall(r"`(tests/\S+\.py)::(\w+)`", RELIABILITY)
SERVING = [*sorted((ROOT / "service").rglob("*.py")), *sorted((ROOT / "index_builder").rglob("*.py"))]


def test_all_fifteen_pitfalls_stand_in_the_table_with_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|.*`tests/[^`]+` \|$", RELIABILITY, re.MULTILINE)
    assert [int(row) for row in rows] == list(range(1, 16))


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_a_test_that_the_table_names_exists(path: str, test: str) -> None:
    assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE)


def calls_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_no_process_is_forked() -> None:
    """A forked FAISS, torch or CUDA hangs or crashes; `spawn` and plain programs do not share their state."""
    for path in SERVING:
        assert not calls_in(path) & {"os.fork", "os.forkpty", "pty.fork"}, path
        assert not re.search(r"get_context\(['\"]fork", path.read_text()), path
        if "multiprocessing" in path.read_text():
            assert "get_context" in path.read_text(), f"{path}: the default may be to fork"


def test_the_number_of_threads_is_the_settings_and_not_the_machines() -> None:
    """torch and FAISS count a machine's cores, not those that a container may use."""
    code = (
        "import torch, index_builder.ann, faiss\n"
        "from service.engine import set_threads\n"
        "torch.set_num_threads(7); faiss.omp_set_num_threads(7)\n"
        "set_threads(3)\n"
        "print(torch.get_num_threads(), faiss.omp_get_max_threads())\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout.split() == ["3", "3"]
    assert "os.cpu_count" not in {
        call for path in (ROOT / "service").rglob("*.py") for call in calls_in(path)
    }


def test_no_middleware_hides_that_a_caller_is_gone() -> None:
    for path in sorted((ROOT / "service").rglob("*.py")):
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom | ast.Import)
            for alias in node.names
        }
        assert "BaseHTTPMiddleware" not in imported, path
        assert not any(call.endswith(".add_middleware") for call in calls_in(path)), path
