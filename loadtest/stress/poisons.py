"""All hand-made poisons, and what becomes of each when it is sent to a running service on a raw socket."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtest.stress.poison_bodies import bodies
from loadtest.stress.poison_heads import heads

HANG_S = 20.0
"""An answer, or the end of the connection, must come within this."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass(frozen=True)
class Poison:
    """pieces: sent one after the other, until an answer comes   statuses: those that are right; 0: closed"""

    name: str
    pieces: Iterable[bytes]
    statuses: Sequence[int]


@dataclass(frozen=True)
class Effect:
    """What came of one.   status: 0 when the connection was closed without an answer, -1 when nothing came"""

    poison: Poison
    status: int
    seconds: float

    @property
    def right(self) -> bool:
        """Whether it is one of the answers that the poison deserves."""
        return self.status in self.poison.statuses


def poisons() -> Iterator[Poison]:
    """Every one of them."""
    for path, name, body, statuses in bodies():
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        length = f"Content-Length: {len(body)}\r\n\r\n"
        yield Poison(f"{path}: {name}", ((head + length).encode() + body,), statuses)
    for name, pieces, statuses in heads():
        yield Poison(name, pieces, statuses)


def send_all(url: str, chosen: Iterable[Poison], *, at_once: int = 8) -> list[Effect]:
    """Send poisons to the service at `url`, some at a time."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    address = (parts.hostname, parts.port)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda poison: send(address, poison), chosen))


def send(address: tuple[str, int], poison: Poison) -> Effect:
    """Send one and wait for its answer. The time counts from when all of it was sent, or an answer came."""
    connection = socket.create_connection(address, timeout=HANG_S)
    with connection:
        try:
            for piece in poison.pieces:
                connection.sendall(piece)
                if select.select([connection], [], [], 0)[0]:
                    break
        except OSError:
            pass  # closed on us: what it said before may still be there
        began = time.monotonic()
        status = _status(connection)
        return Effect(poison, status, time.monotonic() - began)


def _status(connection: socket.socket) -> int:
    try:
        answer = connection.recv(4096)
    except TimeoutError:
        return -1
    except OSError:
        return 0
    found = _STATUS.match(answer)
    return int(found[1]) if found else 0
