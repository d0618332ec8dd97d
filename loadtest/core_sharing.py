"""Whether the CPUs of service and generator are cores of their own: virtual ones often share a core."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from loadtest.served import on_cpus

_LOOP = """
import time
began = time.perf_counter()
for _ in range(3_000_000):
    pass
print(time.perf_counter() - began)
"""
_SPIN = """
print("busy", flush=True)
while True:
    pass
"""
_ROUNDS = 5


def slowdown(cpus: Sequence[int], others: Sequence[int]) -> float:
    """How much longer a loop on `cpus` takes while each of `others` is busy.

    1 on cores of their own, up to 2 on two threads of one core; the median of alternating rounds.
    """
    alone, beside = [], []
    for _ in range(_ROUNDS):
        alone.append(_seconds(cpus))
        with ExitStack() as stack:
            for other in others:
                _keep_busy(stack, other)
            beside.append(_seconds(cpus))
    return statistics.median(beside) / statistics.median(alone)


def _seconds(cpus: Sequence[int]) -> float:
    with on_cpus(cpus):  # a child inherits them
        ran = subprocess.run([sys.executable, "-c", _LOOP], stdout=subprocess.PIPE, text=True, check=True)
    return float(ran.stdout)


def _keep_busy(stack: ExitStack, cpu: int) -> None:
    with on_cpus([cpu]):
        spinner = subprocess.Popen([sys.executable, "-c", _SPIN], stdout=subprocess.PIPE, text=True)
    stack.enter_context(spinner)
    stack.callback(spinner.kill)
    assert spinner.stdout is not None
    spinner.stdout.readline()
