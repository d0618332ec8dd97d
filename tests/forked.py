"""Processes for tests that start in milliseconds, for what every command imports is imported already.

They are forks of one server a test worker. `run` and `start` take what `subprocess.run` and `Popen` take; the
first word of a command says what it starts in its turn: `python()` forks as well, `sys.executable` does not.
A process whose memory is measured, or whose start is what is tested, is not for this.
"""

from __future__ import annotations

import atexit
import functools
import subprocess
from collections.abc import Sequence
from typing import Any

from loadtest.stress.forked import ForkedProcess, ForkServer

_IMPORTED = (
    *("model.cli", "index_builder.nightly_command", "index_builder.load_check", "service.server"),
    *("index_builder.cli", "service.cli", "loadtest.cli", "index_builder.build_report"),
    *("torch._dynamo", "torch.utils.tensorboard"),  # the first update of an optimiser imports the former
    *("pyarrow.csv", "pyarrow.dataset", "pyarrow.parquet", "s3fs", "uvloop"),
)


@functools.cache
def _server() -> ForkServer:
    server = ForkServer(_IMPORTED)
    atexit.register(server.stop)
    return server


def python() -> str:
    """A program to take for python that starts forks."""
    return _server().python


def run(command: Sequence[object], **how: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end; what it wrote is kept."""
    return _server().run(command, **how)


def start(command: Sequence[object], **how: Any) -> ForkedProcess:
    """Start it."""
    return _server().start(command, **how)
