"""One keep-alive connection of a stress test, as cheap as Python allows: bytes out, status and body back."""

from __future__ import annotations

import socket
from typing import NamedTuple
from urllib.parse import urlsplit

_CHUNK = 1 << 18


class Reply(NamedTuple):
    """What came back.   closes: the service ends the connection after it"""

    status: int
    body: bytes
    closes: bool


def recall_bytes(url: str, body: bytes, **headers: str) -> bytes:
    """A whole `POST /recall`, ready to send."""
    lines = [f"POST /recall HTTP/1.1\r\nHost: {urlsplit(url).netloc}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


class RawConnection:
    """A non-blocking socket with one request under way at most."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._received = b""
        self._needed = 0
        self.socket = self._connected()

    def send(self, request: bytes) -> None:
        """Send all of it; requests are far smaller than a socket's buffer."""
        self._received, self._needed = b"", 0
        self.socket.send(request)

    def receive(self) -> Reply | None:
        """What has arrived, once it is whole. Raises OSError when the connection was ended first."""
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError("the service ended the connection")
        received = self._received = self._received + data
        if not self._needed:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return None
            at = received.find(b"content-length: ", 0, end)
            self._needed = end + 4 + int(received[at + 16 : received.find(b"\r\n", at)])
        if len(received) < self._needed:
            return None
        end = received.find(b"\r\n\r\n")
        closes = received.find(b"connection: close", 0, end) >= 0
        return Reply(int(received[9:12]), received[end + 4 : self._needed], closes)

    def renew(self) -> None:
        """Let go of the connection, with whatever is under way on it, and make another."""
        self.socket.close()
        self.socket = self._connected()

    def close(self) -> None:
        self.socket.close()

    def _connected(self) -> socket.socket:
        made = socket.create_connection(self._address, timeout=10)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        return made
