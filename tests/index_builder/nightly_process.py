"""Not a test: nights that are killed by SIGKILL at one file operation after the other, then run once more.

usage: nightly_process.py LOG OUT EVERY OFFSET
OUT/before holds a store with one night published. For n = OFFSET, OFFSET + EVERY, … it copies that to OUT/n
and forks a child that runs the second night and kills itself just before its n-th file operation; the parent
then reads the pointer and the bundle it names, and forks a child that runs the night to its end. It stops
when a child got through unkilled, and prints a line of JSON a kill:
[n, bundle served after the kill, bundle served after the next run, outcome of the next run]
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch.utils.tensorboard

from index_builder import ann
from index_builder.bundle import load_bundle
from index_builder.canary import replay_canary
from index_builder.publish import Store
from tests.index_builder.publishing_process import kill_before
from tests.index_builder.small_night import EARLIER, LATER, night


def main(log: Path, out: Path, every: int, offset: int) -> None:
    torch.set_num_threads(1)
    ann.set_num_threads(1)
    before = out / "before"
    before.mkdir(parents=True)
    in_child(lambda: night(EARLIER, before, log))
    for number in range(offset, 100_000, every):
        folder = out / str(number)
        shutil.copytree(before, folder)

        def killed(number: int = number, folder: Path = folder) -> None:
            kill_before(number, under=str(folder))
            night(LATER, folder, log)

        status = in_child(killed)
        after_kill = verified(folder)
        in_child(lambda folder=folder: outcome(folder, log))
        told = (folder / "outcome").read_text()
        print(json.dumps([number, after_kill, verified(folder), told]), flush=True)
        shutil.rmtree(folder)
        if status == 0:
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"point {number}: the child ended with status {status}"


def in_child(job) -> int:
    """Run `job` in a fork of its own; returns the wait status."""
    child = os.fork()
    if child == 0:
        try:
            job()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def outcome(folder: Path, log: Path) -> None:
    (folder / "outcome").write_text(night(LATER, folder, log)["outcome"])


def verified(folder: Path) -> str:
    """The served bundle, every byte of it checked, loaded and asked its canary."""
    store = Store(folder / "store")
    current = store.current()
    assert current is not None
    bundle = load_bundle(store.bundle_url(current))
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)
    for bundle_id in store.bundle_ids():  # what the store shows is complete, served or not
        store.check(bundle_id)
    return current


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
