"""The kill -9 stress test in short, and that its judge can fail."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.stress.kill import kill_figures, summarise
from loadtest.stress.kill_point import kill_before
from loadtest.stress.outcome import Options, passed
from tests import forked

KILL = {"kill": "after 1.00 s", "served": "b", "broken": None}
AT = {"kill": "before operation 1", "served": "b", "broken": None}
RUN = {"next_run": 0, "finished": True}
END = [{"operations": 2}, {"night_s": 1.0}]


def test_a_few_kills_leave_a_complete_bundle_served_and_the_next_run_ends(monkeypatch):
    monkeypatch.setattr(sys, "executable", forked.python())
    figures = kill_figures(3, 71, Options(short=True))
    assert passed(figures["checks"]), figures
    assert figures["kills_at_random_moments"] == 3
    assert figures["kills_before_file_operations"] >= 3
    assert figures["file_operations_of_a_night"] > 100


@pytest.mark.parametrize(
    ("lines", "holds"),
    [
        ([KILL, AT, AT, RUN, *END], True),
        ([{**KILL, "broken": "bundle b: item_ids.safetensors is damaged"}, AT, AT, RUN, *END], False),
        ([KILL, AT, AT, {"next_run": 256, "finished": False}, *END], False),
        ([KILL, AT, AT, *END], False),
        ([KILL, AT, RUN, *END], False),
        ([KILL, AT, AT, RUN], False),
    ],
)
def test_the_judge_sees_a_broken_store_an_unfinished_run_and_a_kill_that_did_not_happen(
    lines: list[dict[str, Any]], holds: bool
):
    assert passed(summarise(lines, 1, 1)["checks"]) is holds


@pytest.mark.parametrize(("number", "left"), [(1, []), (2, ["new"]), (4, ["name", "new"]), (0, ["name"])])
def test_a_process_ends_before_the_operation_that_it_was_told(tmp_path: Path, number: int, left: list[str]):
    """open for writing, close (where Python tells of it), … rename, in this order: killed before each."""
    child = os.fork()
    if child == 0:
        kill_before(number, under=tmp_path)
        handle = (tmp_path / "new").open("w")
        handle.write("x")
        handle.close()
        (tmp_path / "name").mkdir()
        os.rename(tmp_path / "new", tmp_path / "name" / "moved")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == (signal.SIGKILL if number else 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
