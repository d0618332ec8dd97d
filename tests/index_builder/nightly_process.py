"""Not a test: nights that are killed by SIGKILL at one moment after the other, then run once more.

usage: nightly_process.py LOG OUT EVERY OFFSET RANDOM
OUT/before holds a store with one night published. For n = OFFSET, OFFSET + EVERY, … it copies that to OUT/n
and forks a child that runs the second night and kills itself just before its n-th file operation, until one
gets through unkilled; then RANDOM more are killed at random moments. After each kill the parent reads the
pointer and the bundle it names, and forks a child that runs the night to its end. A line of JSON a kill:
[where, bundle served after the kill, bundle served after the next run, outcome of the next run]
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.tensorboard

from index_builder import ann
from index_builder.bundle import load_bundle
from index_builder.canary import replay_canary
from index_builder.publish import Store
from tests.index_builder.publishing_process import kill_before
from tests.index_builder.small_night import EARLIER, LATER, night


def main(log: Path, out: Path, every: int, offset: int, num_random: int) -> None:
    torch.set_num_threads(1)
    ann.set_num_threads(1)
    before = out / "before"
    before.mkdir(parents=True)
    wait(fork(lambda: night(EARLIER, before, log)))
    for number in range(offset, 100_000, every):

        def killed(folder: Path, number: int = number) -> None:
            kill_before(number, under=str(folder))
            night(LATER, folder, log)

        if one_kill(before, out, log, killed, f"operation {number}") == 0:
            break
    moments, began = random.Random(0), time.monotonic()
    wait(fork(lambda: night(LATER, shutil.copytree(before, out / "whole"), log)))
    whole = time.monotonic() - began
    for number in range(num_random):
        after = moments.uniform(0, whole)
        one_kill(before, out, log, lambda folder: night(LATER, folder, log), f"random {number}", after=after)


def one_kill(
    before: Path, out: Path, log: Path, job: Callable[[Path], object], where: str, after: float | None = None
) -> int:
    """Run `job` on a copy until it is killed, by itself or `after` seconds; check; run the night again."""
    folder = shutil.copytree(before, out / "killed")
    child = fork(lambda: job(folder))
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = wait(child)
    after_kill = verified(folder)
    wait(fork(lambda: (folder / "outcome").write_text(night(LATER, folder, log)["outcome"])))
    told = (folder / "outcome").read_text()
    print(json.dumps([where, after_kill, verified(folder), told]), flush=True)
    shutil.rmtree(folder)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"{where}: the child ended with {status}"
    return status


def fork(job: Callable[[], object]) -> int:
    """Run `job` in a fork of its own; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            job()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def wait(child: int) -> int:
    """The wait status of `child`."""
    return os.waitpid(child, 0)[1]


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
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
