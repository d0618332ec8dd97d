"""Start a fork server, and processes from it that look like those of `subprocess`."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from loadtest.stress import fork_client

_File = int | IO[Any] | None


class ForkedProcess:
    """What `subprocess.Popen` gives for a command: pid, returncode, pipes of text, signals."""

    def __init__(
        self,
        server: str,
        command: Sequence[object],
        *,
        stdin: _File = subprocess.DEVNULL,
        stdout: _File = None,
        stderr: _File = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        self.args = [str(word) for word in command]
        self.returncode: int | None = None
        self._pipes: dict[str, IO[str]] = {}
        with ExitStack() as ours:
            files = [
                self._descriptor(name, file, standard, ours)
                for standard, (name, file) in enumerate(
                    {"stdin": stdin, "stdout": stdout, "stderr": stderr}.items()
                )
            ]
            self._connection, self.pid = fork_client.ask(
                server,
                self.args,
                files,
                environment=os.environ if env is None else env,
                folder=str(cwd or os.getcwd()),
            )

    @property
    def stdout(self) -> IO[str] | None:
        return self._pipes.get("stdout")

    @property
    def stderr(self) -> IO[str] | None:
        return self._pipes.get("stderr")

    def poll(self) -> int | None:
        """The exit code, -9 after SIGKILL, if it has ended."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._take()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._take()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """What it still writes to its pipes until it ends."""
        said: dict[str, str] = {}

        def read(name: str) -> None:
            said[name] = self._pipes[name].read()

        readers = [threading.Thread(target=read, args=(name,)) for name in self._pipes]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return said.get("stdout"), said.get("stderr")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _take(self) -> None:
        self.returncode = os.waitstatus_to_exitcode(fork_client.answer(self._connection))
        self._connection.close()

    def _descriptor(self, name: str, file: _File, standard: int, ours: ExitStack) -> int:
        """What the process gets as its `standard` descriptor; ours: what is closed here once it has it"""
        if file == subprocess.PIPE:
            reading, writing = os.pipe()
            ours.callback(os.close, writing)
            self._pipes[name] = os.fdopen(reading)
            return writing
        if file == subprocess.DEVNULL:
            null = os.open(os.devnull, os.O_RDWR)
            ours.callback(os.close, null)
            return null
        if file is None:
            return standard
        return file if isinstance(file, int) else file.fileno()


class ForkServer:
    """A server that has imported `modules`, until `stop`.

    python: a program that takes python's arguments and runs them in a fork. As the first word of a command it
    is also what the command takes for `sys.executable`: what that starts are forks too
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="t2diff-fork-")
        self._path = str(Path(self._folder.name) / "socket")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "loadtest.stress.fork_server", self._path, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # no threads that a fork would leave behind
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the fork server ended with status {self._server.wait()}")
        client = Path(fork_client.__file__)
        self.python = str(Path(self._folder.name) / "python")
        interpreter = os.readlink("/proc/self/exe")  # also in a fork, where sys.executable is not one
        command = f'exec "{interpreter}" -IS "{client}" "{self._path}" "$0" "$@"'
        Path(self.python).write_text(f"#!/bin/sh\n{command}\n")
        os.chmod(self.python, 0o700)

    def start(self, command: Sequence[object], **how: Any) -> ForkedProcess:
        """Start `command`, a python (the real one or `python`) and its arguments; see ForkedProcess."""
        return ForkedProcess(self._path, command, **how)

    def run(
        self, command: Sequence[object], *, timeout: float | None = None, **how: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end and keep what it writes. Raises subprocess.TimeoutExpired, and kills it then."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = self.start(command, stdout=out, stderr=errors, **how)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            texts = []
            for file in (out, errors):
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess(process.args, code, *texts)

    def stop(self) -> None:
        """End it, and whatever it still runs."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(10)
        self._folder.cleanup()
