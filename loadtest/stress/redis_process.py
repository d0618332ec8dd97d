"""A redis-server of one's own over TCP, to be stopped, killed and started again on the same port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from loadtest.errors import LoadtestError
from service.embedded_redis import find_redis_server

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 10.0


class RedisProcess:
    """`with RedisProcess(folder, "--appendonly", "yes") as redis: redis.url`"""

    def __init__(
        self, folder: Path, *options: str, config: str | None = None, port: int | None = None
    ) -> None:
        """config: text of a configuration file, PORT standing for the port; a sentinel needs one"""
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port() if port is None else port
        self._command = [find_redis_server()]
        if config is not None:
            path = folder / "redis.conf"
            path.write_text(config.replace("PORT", str(self.port)))
            self._command.append(str(path))
        else:
            self._command += ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._command += [*options] if config is not None else [*options, "--dir", str(folder)]
        self._log = folder / "said"
        self.start()

    @property
    def url(self) -> str:
        """Without user or password."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        """Start, or start again, and wait until it answers."""
        with self._log.open("ab") as said:
            self.process = subprocess.Popen(self._command, stdout=said, stderr=said)
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                last = (self._log.read_text(errors="replace").strip().splitlines() or [""])[-1]
                self.kill()
                raise LoadtestError(f"redis-server did not start: {last}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Freeze it: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Thaw it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(_STOP_TIMEOUT_S)

    def __enter__(self) -> RedisProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
