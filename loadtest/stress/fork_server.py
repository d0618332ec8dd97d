"""Processes that start in milliseconds: forks of one that has imported already what they import.

Each is a process of its own, which real signals reach and which ends alone; what it saves is the seconds that
importing torch takes. `ForkServer` starts the server, a program of this module, and asks it for processes.

usage: python -m loadtest.stress.fork_server SOCKET MODULE …
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

_MAX_REQUEST_BYTES = 1 << 20


def main(path: str, *modules: str) -> None:
    """Import, then fork until standard input ends; each fork runs what it was asked for and ends as usual."""
    for name in modules:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it, who then goes
    gc.freeze()  # a collection in a fork would write to, and so copy, every page
    request = _Server(path).serve()
    if request is not None:
        os._exit(_run_to_its_end(request))


class _Server:
    """Its processes: by the descriptor that tells their end, process id and connection to who asked."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(64)
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._ready = selectors.PollSelector()  # nothing of it is in the kernel, to be shared with forks
        self._ready.register(0, selectors.EVENT_READ)
        self._ready.register(self._listener, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """The request, in a fork; None in the server, once whoever started it has gone."""
        os.write(1, b"ready\n")
        while True:
            for key, _ in self._ready.select():
                if key.fileobj == 0:
                    self._kill_all()
                    return None
                if key.fileobj is self._listener:
                    request = self._fork()
                    if request is not None:
                        return request
                elif isinstance(key.fileobj, int):
                    self._tell(key.data)
                elif key.data in self._running and self._running[key.data][1] is key.fileobj:
                    os.kill(self._running[key.data][0], signal.SIGKILL)  # who asked has gone
                    self._ready.unregister(key.fileobj)

    def _fork(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        message, files, _, _ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, 3)
        if not message:
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._listener.close()
            for end, (_, other) in self._running.items():
                os.close(end)
                other.close()
            return {**json.loads(message), "files": files}
        for file in files:
            os.close(file)
        end = os.pidfd_open(pid)
        self._running[end] = pid, connection
        self._ready.register(end, selectors.EVENT_READ, end)
        self._ready.register(connection, selectors.EVENT_READ, end)
        self._send(connection, pid)
        return None

    def _tell(self, end: int) -> None:
        pid, connection = self._running.pop(end)
        self._send(connection, os.waitpid(pid, 0)[1])
        self._ready.unregister(end)
        if connection in self._ready.get_map():
            self._ready.unregister(connection)
        os.close(end)
        connection.close()

    def _send(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError):  # who asked has gone: nobody wants to know
            connection.send(str(number).encode())

    def _kill_all(self) -> None:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)


def _run_to_its_end(request: dict[str, Any]) -> int:
    """The exit status. What ends an interpreter is done, but for taking the imported modules apart."""
    try:
        _run(**request)
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(*([] if code is None else [code]), file=sys.stderr, end="" if code is None else "\n")
        code = 0 if code is None else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return int(code)


def _run(arguments: list[str], environment: dict[str, str], folder: str, files: list[int]) -> None:
    """Be the process that was asked for."""
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # it is imported: as intended
    sys.executable, what, *rest = arguments  # what this process starts with it is as quick, if that is
    if what == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *rest[1:]]
        program = os.memfd_create("program")
        os.write(program, rest[0].encode())
        runpy.run_path(f"/proc/self/fd/{program}", run_name="__main__")
    else:
        sys.argv = [what, *rest]
        sys.path.insert(0, str(Path(what).resolve().parent))
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
