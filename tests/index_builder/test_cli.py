"""`t2diff-index` as a person or a scheduler meets it: output, messages, exit codes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from index_builder import ann, cli
from index_builder.bundle_files import INDEX
from index_builder.publish import Store
from tests import forked


@pytest.fixture
def index(monkeypatch, capsys):
    """index("list", store) -> (exit status, standard output, standard error)"""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["t2diff-index", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def build(index, checkpoint_path, tmp_path):
    """build(…) -> the store's path and the id of the bundle just built in it"""

    def run(*options: str) -> tuple[Path, str]:
        status, out, err = index(
            "build", checkpoint_path, "--out", tmp_path / "store", "--threads", 1, *options
        )
        assert status == 0, err
        bundle_id = out.splitlines()[0].removeprefix("bundle").strip()
        return tmp_path / "store", bundle_id

    return run


def test_build_publishes_what_verify_and_list_then_show(index, build):
    store, bundle_id = build()
    assert Store(store).current() == bundle_id
    status, out, _ = index("verify", store, "--threads", 1)
    assert status == 0
    assert bundle_id in out
    assert "verified    yes: 7 files and 3 canary answers are right" in out
    status, out, _ = index("list", store)
    header, row = out.splitlines()
    assert header.split() == ["bundle", "model", "items", "created", "recall@20"]
    assert row.split()[:3] == [bundle_id, "t2diff", "60"]
    assert row.split()[4:] == ["0.3125", "current"]


def test_build_shows_its_progress_on_standard_error_only(index, checkpoint_path, tmp_path):
    _, out, err = index("build", checkpoint_path, "--out", tmp_path / "store", "--threads", 1)
    assert "7/7" in err
    assert "7/7" not in out
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["index"] == "flat by inner_product, overlap@100 1.0000"
    assert lines["items"] == "60 of 8 dimensions"
    assert lines["served"] == "yes"


def test_no_publish_leaves_the_pointer_alone(index, build):
    store, first = build()
    _, second = build("--no-publish")
    assert Store(store).current() == first
    _, out, _ = index("list", store)
    assert {line.split()[0]: line.split()[-1] for line in out.splitlines()[1:]} == {
        first: "current",
        second: "0.3125",
    }
    assert index("publish", store, second) == (0, f"published {second}\n", "")
    assert Store(store).current() == second


def test_rollback_walks_back(index, build):
    store, first = build()
    _, second = build()
    assert index("rollback", store) == (0, f"rolled back from {second} to {first}\n", "")
    status, out, err = index("rollback", store)
    assert (status, out) == (2, "")
    assert err.startswith("error: nothing to roll back to in store")
    assert index("publish", store, second)[0] == 0
    assert index("rollback", store, "--to", first)[1] == f"rolled back from {second} to {first}\n"


def test_a_generated_bundle_is_published_and_verifies(index, tmp_path):
    status, out, err = index("generate", 700, "--out", tmp_path / "store", "--dim", 8)
    assert status == 0, err
    assert "items       700 of 8 dimensions" in out
    assert "yes: 7 files and 8 canary answers are right" in index("verify", tmp_path / "store")[1]


def test_an_index_kind_is_chosen_by_name(index, build):
    store, _ = build("--index-kind", "hnsw")
    assert "hnsw by inner_product" in index("verify", store, "--threads", 1)[1]


def test_a_damaged_bundle_fails_verify_and_is_marked_in_the_list(index, build):
    store, bundle_id = build()
    path = store / bundle_id / INDEX
    path.write_bytes(path.read_bytes()[:-1])
    status, out, err = index("verify", store)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: bundle {bundle_id}: index.faiss is damaged")
    (store / bundle_id / "manifest.json").write_bytes(b"{}")
    status, out, _ = index("list", store)
    assert status == 0
    assert f"current DAMAGED: bundle {bundle_id}: manifest.json is damaged" in out


def one_line_error(result: tuple[int, str, str]) -> str:
    """The message of a refused command, which printed nothing else and no traceback."""
    status, out, err = result
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    messages = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1
    assert err.splitlines()[-1] == messages[0]
    return messages[0]


def test_bad_input_is_one_line_and_status_2(index, checkpoint_path, tmp_path):
    store = tmp_path / "store"
    assert "no checkpoint at" in one_line_error(index("build", tmp_path / "nowhere", "--out", store))
    assert "index kind must be auto or one of flat" in one_line_error(
        index("build", checkpoint_path, "--out", store, "--index-kind", "annoy")
    )
    assert "needs at least 256 items" in one_line_error(
        index("build", checkpoint_path, "--out", store, "--index-kind", "ivf_pq_fs")
    )
    assert "cannot open store 'nonsense://x'" in one_line_error(
        index("build", checkpoint_path, "--out", "nonsense://x")
    )
    assert not store.exists()
    assert "no bundle store at" in one_line_error(index("list", store))
    assert "no bundle store at" in one_line_error(index("publish", store, "x"))
    assert "no bundle store at" in one_line_error(index("rollback", store))
    assert "nothing is published in store" in one_line_error(index("verify", store))
    store.write_bytes(b"a file")
    assert "is a file, it must be a folder" in one_line_error(
        index("build", checkpoint_path, "--out", store, "--threads", 1)
    )


def test_wrong_bench_input_is_one_line_and_status_2(index, tmp_path):
    assert "items must be whole numbers" in one_line_error(index("bench", "--items", "many"))
    assert "index kind must be one of flat" in one_line_error(index("bench", "--kinds", "annoy"))
    assert "no bundle at" in one_line_error(index("bench", "--bundle", tmp_path / "nowhere"))


def test_a_damaged_checkpoint_is_one_line_and_status_2(index, checkpoint_path, tmp_path):
    copy = Path(shutil.copytree(checkpoint_path, tmp_path / "copy"))
    for name in ("manifest.json", "model.safetensors"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        one_line_error(index("build", copy, "--out", tmp_path / "store"))
        (copy / name).write_bytes(data)


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["build"],
        ["build", "x"],
        ["list", "a", "b"],
        ["build", "x", "--out", "y", "--threads", "0"],
    ],
)
def test_wrong_usage_is_status_2_without_a_traceback(index, arguments):
    status, out, err = index(*arguments)
    assert status == 2
    assert out == ""
    assert "Usage:" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command", [[], ["build"], ["verify"], ["list"], ["publish"], ["rollback"], ["bench"], ["check"]]
)
def test_help_reads_well(index, command):
    status, out, err = index(*command, "--help")
    assert status == 0
    assert err == ""
    assert "Usage: t2diff-index" in out


@pytest.mark.skipif(ann.num_gpus() > 0, reason="a GPU is there")
def test_a_device_that_is_missing_is_said_and_the_cpu_used(index, checkpoint_path, tmp_path, caplog):
    arguments = ("build", checkpoint_path, "--out", tmp_path / "store", "--threads", 1, "--device", "cuda")
    status, _, err = index(*arguments)
    assert status == 0
    assert "warning: torch sees no GPU, the model runs on the CPU" in err
    assert "device cuda was asked for, the index runs on the CPU" in caplog.text


def test_a_real_build_killed_while_writing_leaves_a_complete_bundle_served(build, checkpoint_path):
    store, first = build()
    program = [sys.executable, "-c", "from index_builder.cli import main; main()"]
    process = forked.start(
        [*program, "build", checkpoint_path, "--out", store, "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(store.glob(".staging-*/bundle/*")):
        assert process.poll() is None, "the build ended before it was seen writing"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    served = Store(store).current()
    assert served is not None
    Store(store).check(served)
    assert Store(store).history()[-1] == first
    _, second = build()  # the next one succeeds and tidies up
    assert Store(store).current() == second
    assert not list(store.glob(".staging-*"))


def test_prune_says_what_it_does(index, build, tmp_path):
    store, oldest = build()
    for _ in range(2):
        time.sleep(1.01 - time.time() % 1)  # an id holds the second: which of two was built last is known
        build()
    arguments = ("prune", store, "--keep", 1, "--younger-than", "0d")
    planned = f"would remove {oldest}\nkept 2, would remove 1 and 0 leftovers\n"
    assert index(*arguments, "--dry-run") == (0, planned, "")
    status, out, _ = index(*arguments, "--protect", oldest)
    assert (status, out) == (0, "kept 3, removed 0 and 0 leftovers\n")
    assert index(*arguments)[1] == f"removed {oldest}\nkept 2, removed 1 and 0 leftovers\n"
    status, _, error = index("prune", store, "--keep", 1, "--younger-than", "two weeks")
    assert (status, error) == (2, "error: an age is a number and d, h or m, such as 14d; got 'two weeks'\n")
    assert index("prune", tmp_path / "none", "--keep", 1, "--younger-than", "0d")[0] == 2
