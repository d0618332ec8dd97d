"""Long jobs, each in a process of its own, a few at a time; what they leave is files.

A job that fails, or is killed for want of memory, fails alone. When the program that started the jobs
dies, by whatever signal, they die with it: two of them never work on one folder.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

Report = Callable[[float, str], None]
"""report(share done in 0..1, a few words)"""

_SECONDS_BETWEEN_REPORTS = 0.5
_IMPORTED_ONCE = ("torch.utils.tensorboard", "torch._dynamo")
"""By the program that jobs are forked from: what training would import, a second each, in every job."""


class JobError(RuntimeError):
    """Some jobs failed; the message names them, and the others are done."""


def run_jobs(
    work: Callable[..., None],
    jobs: Mapping[str, tuple[Any, ...]],
    *,
    num_processes: int,
    on_report: Callable[[str, float, str], None] | None = None,
    on_end: Callable[[str, str | None], None] | None = None,
) -> dict[str, str]:
    """Call `work(*arguments, report)` for each job, in the order given.

    work: a function at a module's top level   jobs: name -> arguments
    on_report: told (name, share done, words)   on_end: told (name, None or why it failed)
    -> name -> traceback of each failed job
    """
    context = multiprocessing.get_context("forkserver")  # a plain fork would copy half of torch's threads
    context.set_forkserver_preload(["__main__", work.__module__, *_IMPORTED_ONCE])
    waiting = list(jobs.items())
    running: dict[Connection, tuple[str, Any]] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                name, arguments = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_job, args=(theirs, work, arguments), name=name)
                process.start()
                theirs.close()
                running[ours] = (name, process)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                name, process = running[ready]
                try:
                    share, words = ready.recv()
                except (EOFError, OSError):  # OSError: killed in the middle of a message
                    process.join()
                    del running[ready]
                    if process.exitcode and name not in failed:
                        failed[name] = f"the process ended with exit code {process.exitcode}"
                    if on_end is not None:
                        on_end(name, failed.get(name))
                    continue
                if share is None:
                    failed[name] = words
                elif on_report is not None:
                    on_report(name, share, words)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()
    return failed


def _job(connection: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    told = 0.0

    def report(share: float, words: str) -> None:
        nonlocal told
        if share >= 1 or time.monotonic() - told > _SECONDS_BETWEEN_REPORTS:
            told = time.monotonic()
            connection.send((share, words))

    try:
        work(*arguments, report)
    except BaseException:
        connection.send((None, traceback.format_exc()))
        raise SystemExit(1) from None


def _die_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
