"""Ask a fork server for a process; run as a program, stand in for that process.

It imports next to nothing, so that it starts in milliseconds. The program passes signals on, and ends as the
process ended; when it is killed itself, the server kills the process.

usage: fork_client.py SOCKET PYTHON (-m MODULE | -c CODE | FILE) ARGUMENT …
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT)


def ask(
    path: str,
    arguments: Sequence[str],
    files: Sequence[int],
    *,
    environment: Mapping[str, str],
    folder: str,
) -> tuple[socket.socket, int]:
    """Have a command run in a fork; its process id, and where its wait status will arrive.

    arguments: what it takes for `sys.executable`, then what python takes
    files: descriptors of its standard input, output and error
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    request = {"arguments": list(arguments), "environment": dict(environment), "folder": folder}
    socket.send_fds(connection, [json.dumps(request).encode()], list(files))
    return connection, answer(connection)


def answer(connection: socket.socket) -> int:
    """The next number that the server sends. Raises ConnectionError when it has gone."""
    data = connection.recv(64)
    if not data:
        raise ConnectionError("the fork server has gone")
    return int(data)


def main(path: str, *arguments: str) -> None:
    """Run it and end as it ends."""
    connection, pid = ask(path, arguments, (0, 1, 2), environment=os.environ, folder=os.getcwd())
    for name in PASSED_ON:
        signal.signal(name, lambda number, frame: os.kill(pid, number))
    code = os.waitstatus_to_exitcode(answer(connection))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
