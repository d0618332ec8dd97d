from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.experiments.job_pool import run_jobs
from model.experiments.time_left import TimeLeft
from tests import forked
from tests.waiting import eventually


def work(folder: str, deed: str, report: Any) -> None:
    Path(folder, f"{deed}.pid").write_text(str(os.getpid()))
    report(0.5, f"half of {deed}")
    if deed == "fails":
        raise ValueError("no such luck")
    if deed == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "sleeps":
        time.sleep(300)
    report(1.0, "done")


def test_jobs_report_and_one_that_fails_or_dies_fails_alone(tmp_path: Path) -> None:
    told: list[tuple[str, float, str]] = []
    ended: dict[str, str | None] = {}
    failed = run_jobs(
        work,
        {deed: (str(tmp_path), deed) for deed in ("fails", "killed", "fine")},
        num_processes=3,
        on_report=lambda *report: told.append(report),
        on_end=lambda name, why: ended.update({name: why}),
    )
    assert failed.keys() == {"fails", "killed"}
    assert failed["fails"].strip().endswith("ValueError: no such luck")
    assert "Traceback" in failed["fails"]
    assert "exit code -9" in failed["killed"]
    assert ended["fine"] is None
    assert ended["fails"] == failed["fails"]
    assert ("fine", 0.5, "half of fine") in told
    assert ("fine", 1.0, "done") in told


def test_when_the_parent_is_killed_its_jobs_die(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "from model.experiments.job_pool import run_jobs\n"
        "from tests.model.experiments.test_job_pool import work\n"
        "if __name__ == '__main__':\n"
        "    run_jobs(work, {'sleeps': (sys.argv[1], 'sleeps')}, num_processes=1)\n"
    )
    parent = forked.start([sys.executable, script, tmp_path])
    written = tmp_path / "sleeps.pid"
    eventually(lambda: written.exists() and written.read_text(), "the child never wrote")
    child = int(written.read_text())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    eventually(lambda: not _alive(child), "the child lives on")


def _alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_time_left_by_hand() -> None:
    left = TimeLeft({"a1": "a", "a2": "a", "b1": "b", "b2": "b"})
    assert left.seconds(2) is None
    left.heard("a1", 0.0, now=0.0)
    assert left.seconds(2) is None
    left.heard("a1", 0.5, now=50.0)  # 100 s a job of kind a, and b is taken to be alike
    assert left.seconds(1) == pytest.approx(50 + 100 + 200)
    assert left.seconds(2) == pytest.approx(350 / 2)
    left.heard("b1", 0.25, now=60.0)  # resumed at a quarter
    left.heard("b1", 0.75, now=70.0)  # 20 s a job of kind b
    assert left.seconds(1) == pytest.approx(50 + 100 + 5 + 20)
    assert left.seconds(4) == pytest.approx(100)  # never less than the longest job
    for job in ("a1", "a2", "b1", "b2"):
        left.heard(job, 1.0, now=100.0)
    assert left.seconds(2) == 0
