"""Training in several real processes, against one: the same losses, the same weights, one end for all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from loadtest.stress.forked import ForkedProcess
from model.data.dataset import leave_one_out
from model.data.windows import TrainingWindows
from model.ranks import Ranks
from model.training import train
from model.training_settings import TrainingSettings
from tests import forked
from tests.model.conftest import TINY
from tests.model.training_process import CASES, SETTINGS, InterruptedHereError, losses_of, uneven_log

ROOT = Path(__file__).parents[2]
LOOPBACK = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
SMALL = [part for name, value in TINY.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def _torchrun(*options: object) -> list[object]:
    """`torchrun`, up to the command that it starts twice; both are forks."""
    run = [forked.python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    return [*run, *options, "--no-python", forked.python()]


def _close(left: Path, right: Path) -> bool:
    """Whether two runs ended with the same weights, optimiser and random state.

    Softmax does not feel a bias of all keys: its gradient is rounding, which the optimiser makes steps of.
    """
    one, other = (load_file(out / "state" / "state.safetensors") for out in (left, right))
    assert one.keys() == other.keys()
    assert np.array_equal(one["random.cpu"], other["random.cpu"])
    return all(
        np.allclose(one[name], other[name], rtol=1e-3, atol=1e-5)
        for name in one
        if not name.startswith("model.") or not name.endswith("of_key_value.bias")
    )


def test_two_processes_of_torchrun_make_the_losses_and_the_weights_of_one(tmp_path: Path) -> None:
    windows = TrainingWindows(leave_one_out(uneven_log()).train, max_length=6, targets_per_window=6)
    batches = windows.epoch(SETTINGS.seed, 0, batch_size=SETTINGS.batch_size)
    assert {len(batch) for batch in batches} >= {1, 7}, "a batch that is not split, and one split unevenly"

    with pytest.raises(InterruptedHereError):
        losses_of("sharded_and_resumed", tmp_path / "two" / "sharded_and_resumed", stop_at=6)
    alone = {case: losses_of(case, tmp_path / "one" / case) for case in CASES}
    program = ROOT / "tests" / "model" / "training_process.py"
    ran = forked.run([*_torchrun(), program, tmp_path / "two", *CASES], env=LOOPBACK, timeout=200)
    assert ran.returncode == 0, ran.stderr
    for case, losses in alone.items():
        together = json.loads((tmp_path / "two" / f"{case}.json").read_text())
        if "resumed" in case:  # from the state after update 4, which one process had left
            losses = losses[4:]
        assert together == pytest.approx(losses, rel=1e-4), case
        one, two = tmp_path / "one" / case, tmp_path / "two" / case
        assert _close(one, two), case
        metrics = [
            json.loads((run / "checkpoint" / "manifest.json").read_text())["metrics"] for run in (one, two)
        ]
        assert metrics[0] == pytest.approx(metrics[1]), case


def _log_file(folder: Path) -> Path:
    log = folder / "log.csv"
    rows = [
        f"user{u},item{(5 * u + 3 * s) % 30},{1_700_000_000 + 60 * s}" for u in range(40) for s in range(9)
    ]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return log


def _command(log: Path, out: Path, *more: object) -> list[object]:
    options = ("--epochs", 4, "--patience", 4, "--batch-size", 8, "--set", "dropout=0.2", *SMALL)
    return ["-m", "model.cli", "train", "--data", log, "--out", out, *options, *more]


def _read_until(process: ForkedProcess, words: str) -> str:
    said = ""
    assert process.stderr is not None
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def test_a_killed_process_ends_the_other_with_a_message_and_one_process_goes_on(tmp_path: Path) -> None:
    log = _log_file(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_run = {**LOOPBACK, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (
        forked.start(
            [sys.executable, *_command(log, tmp_path / "run")],
            env={**of_run, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    )
    _read_until(first, "epoch 2/4")
    second.kill()
    _, said = first.communicate(60)
    second.communicate(60)
    assert (first.returncode, second.returncode) == (3, -signal.SIGKILL)
    assert said is not None
    assert "rank 0: error: another process of this run ended" in said
    assert "Traceback" not in said

    for out, more in (("run", ["--resume"]), ("whole", [])):
        alone = forked.run([sys.executable, *_command(log, tmp_path / out, *more)], timeout=100)
        assert alone.returncode == 0, alone.stderr
    assert _close(tmp_path / "run", tmp_path / "whole")


def test_torchrun_ends_all_when_one_cannot_go_on_and_starts_again_when_asked(tmp_path: Path) -> None:
    log, out = _log_file(tmp_path), tmp_path / "run"
    process = forked.start(
        [*_torchrun("--max-restarts", 1), *_command(log, out, "--resume")],
        env=LOOPBACK,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _read_until(process, "epoch 2/4")
    ranks = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1"
    ]
    ranks[0].kill()
    told, said = process.communicate(100)
    assert process.returncode == 0, said
    assert told is not None
    assert told.count("trained t2diff") == 1, "the first process alone prints"
    assert json.loads((out / "state" / "run.json").read_text())["state"]["epoch"] == 4

    again = forked.run([*_torchrun(), *_command(log, out)], env=LOOPBACK, timeout=100)
    assert again.returncode != 0
    assert re.search(r"rank 0: error: out: .* holds a run already; give --resume", again.stderr)


@pytest.mark.parametrize(
    ("model", "sharded", "count", "words"),
    [
        ("sasrec", False, 2, "model: sasrec trains in one process, got 2"),
        ("popularity", False, 2, "model: popularity trains in one process, got 2"),
        ("t2diff", True, 1, "shard_items: one process has nobody"),
        ("t2diff", True, 2, "shard_items: the softmax over 40 items reads the whole table"),
    ],
)
def test_what_several_processes_cannot_train_is_refused_before_anything_is_written(
    model: str, sharded: bool, count: int, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        train(
            leave_one_out(uneven_log()),
            model_name=model,
            model_config={},
            settings=TrainingSettings(shard_items=sharded),
            out=tmp_path / "run",
            ranks=Ranks(0, count),
        )
    assert not (tmp_path / "run").exists()


def test_an_environment_that_is_set_by_half_is_refused(tmp_path: Path) -> None:
    log = _log_file(tmp_path)
    command = [sys.executable, *_command(log, tmp_path / "run")]
    lacking = forked.run(command, env={**LOOPBACK, "WORLD_SIZE": "2", "RANK": "0"}, timeout=100)
    assert lacking.returncode == 2
    assert (
        "rank 0: error: environment: WORLD_SIZE is 2 but MASTER_ADDR, MASTER_PORT is not set"
        in lacking.stderr
    )
    wrong = {**LOOPBACK, "WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    refused = forked.run(command, env=wrong, timeout=100)
    assert refused.returncode == 2
    assert "rank 0: error: environment: WORLD_SIZE must be a number, got 'two'" in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("size", "count"), [(16, 2), (7, 3), (5, 5)])
def test_the_rows_of_all_ranks_are_all_rows_in_order(size: int, count: int) -> None:
    parts = [range(size)[Ranks(rank, count).rows(size)] for rank in range(count)]
    assert [row for part in parts for row in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert min(map(len, parts)) >= 1
