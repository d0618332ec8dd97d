"""A stress test's client in a process of its own: a clean one, without inherited threads, sockets or heap."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

from loadtest.errors import LoadtestError

Result = TypeVar("Result")
EVERY_S = 0.05


def in_own_process(
    function: Callable[..., Result],
    *arguments: Any,
    cpu: int | None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Result:
    """`function(*arguments)`, on `cpu`.   meanwhile: called every EVERY_S in this process

    Raises LoadtestError when the process ends without a result.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_run, args=(function, arguments, cpu, sender), daemon=True)
    process.start()
    sender.close()
    try:
        while not receiver.poll(EVERY_S):
            meanwhile()
        result: Result = receiver.recv()
        return result
    except EOFError:
        raise LoadtestError(f"the process of {function.__name__} ended early") from None
    finally:
        receiver.close()
        process.join(5)
        if process.is_alive():
            process.terminate()
            process.join()


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], cpu: int | None, results: Connection
) -> None:
    if cpu is not None:
        psutil.Process().cpu_affinity([cpu])
    gc.freeze()
    results.send(function(*arguments))
