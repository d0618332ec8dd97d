"""A real Milvus for tests: milvus-lite as a server process of its own, over TCP, to be killed or stopped.

Its data folder can be open in one process only, so builder and service cannot both open it as a file: they
ask this server, as they would a cluster.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path


class MilvusServer:
    """`milvus-lite server` on a port of its own; the same port and data after a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.move()

    def move(self) -> None:
        """Start it on a port where it was not before."""
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Returns when it takes connections."""
        arguments = [
            "--data-dir",
            str(self._folder / "data"),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        with (self._folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "milvus_lite", "server", *arguments], stdout=log, stderr=log
            )
        give_up = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < give_up, "milvus-lite did not start"
                assert self.process.poll() is None, (self._folder / "log").read_text()
                time.sleep(0.05)

    def kill(self) -> None:
        """At once, as a machine that fails."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """It takes connections and answers nothing any more, as a network that swallows what is sent."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `stop`."""
        os.kill(self.process.pid, signal.SIGCONT)
