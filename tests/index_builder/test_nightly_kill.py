"""Kill -9 at any moment: the pointer names a complete bundle, and the next run finishes the work."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from index_builder.bundle import load_bundle
from index_builder.canary import replay_canary
from index_builder.publish import Store
from tests.index_builder.small_night import EARLIER, FLAGS, NOW, night, write_log

NIGHTLY_PROCESS = Path(__file__).parent / "nightly_process.py"
PROGRAM = "from index_builder.cli import main; main()"
STAGES = ("2/5 training", "epoch 1/2", "3/5 building", "4/5 asking the gates", "5/5 publishing")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}


def job(folder: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-c", PROGRAM, "nightly", "--logs", str(folder / "log.csv")),
        *("--store", str(folder / "store"), "--work", str(folder / "work"), *FLAGS, *flags),
    ]


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(job(folder, *flags), stdout=pipe, stderr=pipe, text=True, env=environment())


def finish(folder: Path, *flags: str, expected: int = 0) -> dict:
    """Run the job to its end; its summary is the last line on standard output."""
    ended = subprocess.run(
        job(folder, *flags), capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert ended.returncode == expected, ended.stderr
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert summary["exit_status"] == expected
    return summary


@pytest.fixture
def folder(tmp_path) -> Path:
    write_log(tmp_path / "log.csv")
    return tmp_path


def check_served(folder: Path, *, among: set[str] | None = None) -> str | None:
    """The pointer names a bundle that is complete and answers; returns it."""
    store = Store(folder / "store")
    current = store.current()
    if current is not None:
        bundle = load_bundle(store.bundle_url(current))
        replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)
    for bundle_id in store.bundle_ids():
        store.check(bundle_id)
    return current


def test_a_night_killed_in_every_stage_goes_on_where_it_was(folder):
    first = night(EARLIER, folder)["bundle"]
    begun = []
    for stage in STAGES:
        process = start(folder)
        seen = []
        for line in process.stderr:
            seen.append(line.strip())
            if stage in line:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        begun.append(seen)
        served = check_served(folder)
        assert served == first or stage == STAGES[-1]
    summary = finish(folder)
    assert summary["outcome"] in ("published", "nothing_new")
    assert check_served(folder) == summary["bundle"] != first
    for stage, seen in zip(STAGES, begun, strict=True):
        assert stage in " ".join(seen), seen
    assert not any("epoch" in line for line in begun[-1]), "training was repeated after it had finished"
    assert finish(folder)["outcome"] == "nothing_new"


def test_a_night_killed_at_random_moments_never_leaves_half_a_bundle_served(folder):
    first = night(EARLIER, folder)["bundle"]
    random_moments = random.Random(5)
    for _ in range(4):
        process = start(folder, "--until", str(NOW))
        time.sleep(random_moments.uniform(1.5, 4.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert check_served(folder) is not None
    summary = finish(folder, "--until", str(NOW))
    assert check_served(folder) == summary["bundle"] != first


def test_a_kill_at_a_file_operation_leaves_a_complete_bundle_served_and_the_next_run_ends(folder, tmp_path):
    """Every so many of the operations on store and work folder; the stress run takes each of them."""
    process = subprocess.run(
        [sys.executable, NIGHTLY_PROCESS, folder / "log.csv", tmp_path / "out", "41", "3"],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment(),
        check=False,
    )
    assert process.returncode == 0, process.stderr
    kills = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(kills) >= 8, kills
    first = kills[0][1]
    for number, after_kill, after_next, outcome in kills:
        assert outcome == ("published" if after_kill == first else "nothing_new"), (number, outcome)
        assert after_next != first
        assert after_kill in (first, after_next)


def test_a_second_builder_leaves_at_once_and_says_who_builds(folder):
    process = start(folder)
    try:
        for line in process.stderr:
            if "2/5 training" in line:
                break
        process.send_signal(signal.SIGSTOP)
        summary = finish(folder, expected=4)
        assert summary["outcome"] == "locked"
        assert f"process {process.pid} on " in summary["error"]
        assert "since 20" in summary["error"]
        other_work = finish(folder, "--work", str(folder / "elsewhere"), expected=4)
        assert f"process {process.pid} on " in other_work["error"]
        assert ".nightly.lock" in other_work["error"]
    finally:
        process.kill()
        process.communicate()
    assert finish(folder)["outcome"] == "published"  # the lock ended with its holder


def test_the_exit_status_says_what_a_scheduler_must_do(folder):
    assert finish(folder, "--until", str(NOW - 86_400))["outcome"] == "published"
    served = check_served(folder)
    refused = finish(folder, "--limit", "max_recall_drop=-10", expected=3)
    assert refused["outcome"] == "refused"
    assert refused["refused_by"] == ["recall_at_20_drop"]
    assert check_served(folder) == served
    assert finish(folder, "--limit", "max_recall_drop=-10", expected=3)["resumed"] is True
    for flags, message in (
        (["--logs", str(folder / "nowhere.csv")], "no such file or folder"),
        (["--set", "nonsense=1"], "has no setting 'nonsense'"),
        (["--history", "0"], "history must be above 0"),
        (["--until", "yesterday"], "until must be a date or time"),
        (["--limit", "nonsense=1"], "there is no gate limit 'nonsense'"),
        (["--limits", str(folder / "nowhere.toml")], "cannot read the limits in"),
        (["--keep-added", "-1"], "keep_added must be a number of days"),
        (["--retire-after", "0"], "retire_after must be at least 1 day"),
        (["--store", "nonsense://x"], "cannot open store"),
    ):
        bad = finish(folder, *flags, expected=2)
        assert bad["outcome"] == "bad_input"
        assert message in bad["error"]
    forced = finish(folder, "--limit", "max_recall_drop=-10", "--force")
    assert (forced["outcome"], forced["forced"]) == ("published", True)
    assert check_served(folder) == forced["bundle"]
    assert json.loads((folder / "work" / "last.json").read_text())["bundle"] == forced["bundle"]
