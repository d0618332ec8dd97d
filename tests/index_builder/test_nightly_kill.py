"""Kill -9 in every stage: the pointer names a complete bundle, and the next run goes on where it was.

Kills before file operations and at random moments are in `tests/loadtest/test_stress_kill.py`.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from index_builder.bundle import load_bundle
from index_builder.canary import replay_canary
from index_builder.cli import main
from index_builder.publish import Store
from loadtest.stress.forked import ForkedProcess
from tests import forked
from tests.index_builder.small_night import EARLIER, FLAGS, NOW, night, write_log

PROGRAM = "from index_builder.cli import main; main()"
STAGES = ("epoch 1/2", "3/5 building", "5/5 publishing")


def job(folder: Path, *flags: str) -> list[str]:
    return [
        *(forked.python(), "-c", PROGRAM, "nightly", "--logs", str(folder / "log.csv")),
        *("--store", str(folder / "store"), "--work", str(folder / "work"), *FLAGS, *flags),
    ]


def start(folder: Path, *flags: str) -> ForkedProcess:
    return forked.start(job(folder, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(folder: Path, *flags: str, expected: int = 0) -> dict:
    """Run the job to its end; its summary is the last line on standard output."""
    ended = forked.run(job(folder, *flags), timeout=120)
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


def test_a_night_killed_in_its_stages_goes_on_where_it_was(folder):
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
        assert stage in seen[-1], seen
        begun.append(" ".join(seen))
        assert check_served(folder) == first or stage == STAGES[-1]
    assert "epoch" not in begun[-1], "training was repeated after it had finished"
    summary = finish(folder)
    assert summary["outcome"] in ("published", "nothing_new")
    assert check_served(folder) == summary["bundle"] != first


def test_a_second_builder_leaves_at_once_and_says_who_builds(run, folder):
    process = start(folder)
    try:
        for line in process.stderr:
            if "2/5 training" in line:
                break
        process.send_signal(signal.SIGSTOP)
        status, summary = run()
        assert (status, summary["outcome"]) == (4, "locked")
        assert f"process {process.pid} on " in summary["error"]
        assert "since 20" in summary["error"]
        status, other_work = run("--work", str(folder / "elsewhere"))
        assert status == 4
        assert f"process {process.pid} on " in other_work["error"]
        assert ".nightly.lock" in other_work["error"]
    finally:
        process.kill()
        process.communicate()
    assert run()[1]["outcome"] == "published"  # the lock ended with its holder


@pytest.fixture
def run(capsys, monkeypatch, folder):
    """run(*flags) -> the summary of the job, run in this process, and its exit status."""

    def command(*flags: str) -> tuple[int, dict]:
        monkeypatch.setattr(sys, "argv", ["t2diff-index", *job(folder, *flags)[3:]])
        monkeypatch.setattr(sys, "executable", forked.python())
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return command


def test_the_exit_status_says_what_a_scheduler_must_do(run, folder):
    impossible = ("--limit", "max_recall_drop=-10")
    status, published = run("--until", str(NOW - 86_400))
    assert (status, published["outcome"]) == (0, "published")
    report = folder / "work" / "last.html"
    assert f"<dd>{published['bundle']}</dd>" in report.read_text()
    status, refused = run(*impossible)
    assert (status, refused["outcome"], refused["refused_by"]) == (3, "refused", ["recall_at_20_drop"])
    assert refused_gates(report) == ["recall_at_20_drop"]
    assert check_served(folder) == published["bundle"]
    status, again = run(*impossible)
    assert (status, again["outcome"], again["resumed"]) == (3, "refused", True)
    status, forced = run(*impossible, "--force")
    assert (status, forced["outcome"], forced["forced"]) == (0, "published", True)
    assert check_served(folder) == forced["bundle"]
    assert "FORCED: published although refused by recall_at_20_drop" in report.read_text()
    assert json.loads((folder / "work" / "last.json").read_text())["bundle"] == forced["bundle"]
    assert run()[1]["outcome"] == "nothing_new"
    assert "was made of these very inputs" in report.read_text()


def refused_gates(report: Path) -> list[str]:
    """The gates that the page marks."""
    row = (
        r'<tr><td>([a-z_0-9]+)<br><small>[^<]*</small></td>(?:<td>[^<]*</td>){2}<td><span class="bad">refused'
    )
    return re.findall(row, report.read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["--set", "nonsense=1"], "has no setting 'nonsense'"),
        (["--history", "0"], "history must be above 0"),
        (["--until", "yesterday"], "until must be a date or time"),
        (["--until", "1970-01-02"], "no interaction lies before 86400"),
        (["--limit", "nonsense=1"], "there is no gate limit 'nonsense'"),
        (["--limits", "nowhere.toml"], "cannot read the limits in"),
        (["--keep-added", "-1"], "keep_added must be a number of days"),
        (["--keep", "0"], "keep must be at least 1, got 0"),
        (["--keep", "3", "--younger-than", "soon"], "an age is a number and d, h or m"),
        (["--protect", "x"], "protect is only for pruning"),
        (["--catalogue", "nowhere.csv"], "nowhere.csv"),
        (["--retire-after", "0"], "retire_after must be at least 1 day"),
        (["--store", "nonsense://x"], "cannot open store"),
        (["--timestamp-column", ""], "a nightly build needs times"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(run, flags, message):
    status, summary = run(*flags)
    assert (status, summary["outcome"], summary["exit_status"]) == (2, "bad_input", 2)
    assert message in summary["error"]


def test_training_that_fails_is_exit_status_1_and_the_next_run_goes_on(run, folder, monkeypatch):
    monkeypatch.setattr("index_builder.nightly_candidate.draft_bundle", disk_full)
    status, summary = run()
    assert (status, summary["outcome"]) == (1, "failed")
    assert "No space left" in summary["error"]
    assert "No space left" in (folder / "work" / "last.html").read_text()
    monkeypatch.undo()
    assert finish(folder)["resumed"] is True


def disk_full(*arguments, **named):
    raise OSError(28, "No space left on device")
