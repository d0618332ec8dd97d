"""Run as a program: nights that are killed by SIGKILL, and what each leaves behind, a line of JSON a kill.

usage: python -m loadtest.stress.killed_nights FOLDER moments COUNT | operations EVERY

It imports everything once and forks a child a night, so that a kill falls into the night and not into its
imports; the gates' fresh process is a fork too, of a server that has no part in the night. `moments` kills
the whole command `t2diff-index nightly` at random moments, up to BATCH times in one store and work folder,
half of them a store's first night, and then lets it end. `operations` kills the second night before its 1st,
(1 + EVERY)-th, … file operation, each time from the same start, and lets the next run end; that night asks
every gate but that of the fresh process.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from index_builder import ann, nightly_command
from index_builder.bundle import load_bundle
from index_builder.canary import replay_canary
from index_builder.gate_limits import GateLimits
from index_builder.gates import run_gates
from index_builder.nightly import run_night
from index_builder.nightly_inputs import NightSettings
from index_builder.publish import Store
from index_builder.quality import Check
from loadtest.stress.forked import ForkServer
from loadtest.stress.kill_point import kill_before
from model.data.reader import read_interactions
from model.data.synthetic import generate_drift_log
from model.training import Progress, TrainingSettings

BATCH = 5
MODEL = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3}
_OFF = float("inf")
LIMITS = {
    **dict.fromkeys(("max_recall_drop", "max_mrr_drop", "max_behind_popular", "max_popular_share"), _OFF),
    **dict.fromkeys(("max_popular_rise", "max_norm_ratio", "max_day_ratio", "max_top_user_share"), _OFF),
    **dict.fromkeys(("min_coverage_ratio", "min_day_ratio", "min_similarity"), 0.0),
    "min_questions": 1.0,
}
"""Sixty users show nothing of quality, and whether a kill does damage is not a question of it."""
_DAY_S = 86_400


def main(arguments: list[str]) -> None:
    """Print a line a kill, then one with the number of file operations or the seconds of a night."""
    folder, kind, number = Path(arguments[0]), arguments[1], int(arguments[2])
    torch.set_num_threads(1)
    ann.set_num_threads(1)
    now = int(time.time())
    generate_drift_log(num_users=60, num_items=40, seed=1, now=now).write_event_log(folder / "log.csv")
    before = folder / "before"
    before.mkdir()
    log = folder / "log.csv"
    server = ForkServer(["index_builder.load_check"])
    sys.executable = server.python
    imported = folder / "imported"
    _require(
        in_child(lambda: _command(before, log, until=now - _DAY_S, imported=imported)) == 0,
        "the first night did not end",
    )
    _import_all(imported)
    gc.freeze()  # a collection in a fork would write to, and so copy, every page
    if kind == "moments":
        _at_moments(folder, log, before, number, now)
    else:
        _at_operations(folder, log, before, number)
    server.stop()


def _at_moments(folder: Path, log: Path, before: Path, count: int, now: int) -> None:
    choice = random.Random(0)
    trial = folder / "trial"
    shutil.copytree(before, trial)
    began = time.monotonic()
    _require(in_child(lambda: _command(trial, log, until=now)) == 0, "the second night did not end")
    night_s = time.monotonic() - began
    kills = batch = 0
    while kills < count:
        shutil.rmtree(trial)
        if batch % 2:
            trial.mkdir()
        else:
            shutil.copytree(before, trial)
        batch += 1
        first = left = served(trial)
        for _ in range(min(BATCH, count - kills)):
            after_s = choice.uniform(0, night_s)
            status = in_child(lambda: _command(trial, log, until=now), kill_after_s=after_s)
            if not os.WIFSIGNALED(status):
                break  # it had ended before: no kill
            kills += 1
            left = _tell_left(trial, f"after {after_s:.2f} s")
        _finish(trial, lambda: _command(trial, log, until=now), first, left)
    _tell({"night_s": round(night_s, 2)})


def _at_operations(folder: Path, log: Path, before: Path, every: int) -> None:
    trial, counted = folder / "trial", folder / "counted"
    shutil.copytree(before, trial)

    def count() -> None:
        seen = kill_before(0, under=trial)
        _night(trial, log)
        sys.setprofile(None)
        counted.write_text(str(seen()))

    _require(in_child(count) == 0, "the second night did not end")
    operations = int(counted.read_text())
    first = served(before)

    def killed(number: int) -> None:
        kill_before(number, under=trial)
        _night(trial, log)

    for number in range(1, operations + 1, every):
        shutil.rmtree(trial)
        shutil.copytree(before, trial)
        status = in_child(lambda number=number: killed(number))  # type: ignore[misc]
        left = first
        if os.WIFSIGNALED(status):
            left = _tell_left(trial, f"before operation {number}")
        _finish(trial, lambda: _night(trial, log), first, left)
    _tell({"operations": operations})


def _finish(trial: Path, night: Callable[[], None], first: str | None, left: str | None) -> None:
    """Let the next run end: a new bundle is served then, and no third one where a kill left it served.

    first: what was served before the kills   left: after the last of them
    """
    status = in_child(night)
    ended = _left(trial)["served"]
    finished = status == 0 and ended not in (None, first) and left in (first, ended)
    _tell({"next_run": status, "finished": finished})


# --- a night, and what it leaves -----------------------------------------------------------------


def _command(folder: Path, log: Path, *, until: int, imported: Path | None = None) -> None:
    """The nightly job as a scheduler runs it; ends by SystemExit.   imported: gets what it had imported"""
    training = ["--epochs", "2", "--later-epochs", "2", "--save-every", "5", "--history", "400"]
    settings = [text for name, value in MODEL.items() for text in ("--set", f"{name}={value}")]
    limits = [text for name, value in LIMITS.items() for text in ("--limit", f"{name}={value}")]
    try:
        nightly_command.command(
            [
                *("--logs", str(log), "--store", str(folder / "store"), "--work", str(folder / "work")),
                *("--until", str(until), "--device", "cpu", *training, *settings, *limits),
            ]
        )
    finally:
        if imported is not None:
            imported.write_text("\n".join(sys.modules))


def _import_all(names: Path) -> None:
    """What a night imports on its way: a second each, in every one of hundreds of forks."""
    for name in names.read_text().splitlines():
        with suppress(Exception):  # parts of packages that exist only once made
            importlib.import_module(name)


def _night(folder: Path, log: Path) -> None:
    """The same without the fresh process, which takes most of its time."""
    training = TrainingSettings(epochs=2, batch_size=16, save_every_updates=5)
    night = NightSettings(
        model_config=MODEL,
        first=training,
        later=training,
        history_days=400.0,
        limits=dataclasses.replace(GateLimits(), **LIMITS),
    )
    store, work = Store(folder / "store"), folder / "work"

    def gates(url: str, *asked: Any, **how: Any) -> list[Check]:
        return run_gates(load_bundle(url), *asked, **how)

    ended = run_night(
        night, store, work, read=lambda: read_interactions([log]), watcher=_Silent(), gates=gates
    )
    _require(ended["outcome"] in ("published", "nothing_new"), f"the night ended as {ended['outcome']}")


class _Silent:
    """A watcher whose lines are no file operations."""

    def stage(self, name: str, total: int | None = None) -> None: ...
    def step(self, name: str) -> None: ...
    def trained(self, progress: Progress) -> None: ...
    def note(self, text: str) -> None: ...


def served(folder: Path) -> str | None:
    """The served bundle, every byte checked, loaded and asked its canary; so is all that the store shows."""
    store = Store(folder / "store")
    current = store.current()
    if current is not None:
        bundle = load_bundle(store.bundle_url(current))
        replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)
    for bundle_id in store.bundle_ids() if current is not None else []:
        store.check(bundle_id)
    return current


def _tell_left(folder: Path, kill: str) -> str | None:
    """Tell what a kill left; returns what is served."""
    left = _left(folder)
    _tell({"kill": kill, **left})
    served_now: str | None = left["served"]
    return served_now


def _left(folder: Path) -> dict[str, Any]:
    """What the store serves, or how it is broken."""
    try:
        return {"served": served(folder), "broken": None}
    except (ValueError, OSError) as error:
        return {"served": None, "broken": str(error)}


def in_child(job: Callable[[], None], *, kill_after_s: float | None = None) -> int:
    """Run `job` in a fork, silent, and perhaps end it by SIGKILL; returns the wait status."""
    child = os.fork()
    if child == 0:
        _run_silently(job)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _run_silently(job: Callable[[], None]) -> None:
    """Ends the process, with the job's exit status."""
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        job()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
