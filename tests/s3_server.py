"""A real S3-compatible server process (moto's), and a connection to it that can be watched and cut."""

from __future__ import annotations

import re
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

_PIECE = 131_072


class S3Server:
    """`url`, `port`: where it listens. What it stores is gone when it stops."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        for line in self._process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("the S3 server did not start")
        self.url = f"http://127.0.0.1:{self.port}"
        self.endpoint_in_use = ""  # of this process's clients
        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # a full pipe would stop it

    def environment(self, endpoint: str) -> dict[str, str]:
        """What makes any S3 client use `endpoint`, and nothing of the person's own."""
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
        }

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Connection:
    """Every byte between clients and the server passes here.

    url, server_url: with and without it   num_sent, num_received: bytes that clients sent and got
    """

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self.server_url = f"http://127.0.0.1:{port}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.refuse = False
        self.reset()

    def reset(self) -> None:
        """Count anew, let everything pass."""
        with self._lock:
            self.num_sent = self.num_received = 0
            self._at: dict[str, tuple[int, Callable[[], None]]] = {}
            self._before: tuple[re.Pattern[bytes], Callable[[], None]] | None = None
            self.refuse = False

    def before(self, pattern: bytes, action: Callable[[], None]) -> None:
        """Run `action` once, before the first request that matches `pattern` reaches the server."""
        self._before = (re.compile(pattern), action)

    def at_sent(self, count: int, action: Callable[[], None]) -> None:
        """Run `action` once that many bytes were sent, in the middle of whatever is under way."""
        self._at["num_sent"] = (count, action)

    def at_received(self, count: int, action: Callable[[], None]) -> None:
        """The same for what clients get."""
        self._at["num_received"] = (count, action)

    def cut(self) -> None:
        """Break every connection in its middle, and refuse new ones until `reset`."""
        self.refuse = True
        self.drop()

    def drop(self) -> None:
        """Break every connection in its middle; new ones are welcome."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Connection:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
            else:
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        try:
            with (
                client,
                socket.create_connection(self._server) as server,
                selectors.DefaultSelector() as ready,
            ):
                with self._lock:
                    self._open |= {client, server}
                ready.register(client, selectors.EVENT_READ, (server, "num_sent"))
                ready.register(server, selectors.EVENT_READ, (client, "num_received"))
                while True:
                    for key, _ in ready.select():
                        other, counter = key.data
                        piece = key.fileobj.recv(_PIECE)  # type: ignore[union-attr]
                        if not piece:
                            return
                        for part in self._parts(piece, counter):
                            other.sendall(part)
                        if self.refuse:
                            return
        except OSError:
            pass
        finally:
            with self._lock:
                self._open = {end for end in self._open if end.fileno() >= 0}

    def _parts(self, piece: bytes, counter: str) -> list[bytes]:
        """What may still pass of a piece; runs an action that is due in its middle."""
        with self._lock:
            before = getattr(self, counter)
            setattr(self, counter, before + len(piece))
            count, action = self._at.get(counter, (0, None))
            due = action is not None and before < count <= before + len(piece)
            if due:
                del self._at[counter]
            waited_for = self._before
            if waited_for and counter == "num_sent" and waited_for[0].search(piece):
                self._before = None
            else:
                waited_for = None
        if waited_for:
            waited_for[1]()
        if not due:
            return [piece]
        assert action is not None
        action()
        return [piece[: count - before]] if self.refuse else [piece]
