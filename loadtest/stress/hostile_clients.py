"""Clients that hold connections, drip bytes and send floods; each begins again as soon as it was cut off.

They run in a process of their own, and use little of the machine: what is measured is what they do to the
service.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson

_POST = b"POST /recall HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_PIECE = 65_536
_GIGABYTE = 2**30
_PAUSE_S = 5.0
"""Between two floods of one client: otherwise it is the machine that is flooded."""

Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Connects and says nothing."""
    await reader.read()


async def half_a_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Stops in the middle of a header."""
    await _send(writer, _POST + b"Content-Le")
    await reader.read()


async def dripping_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A header line every half second."""
    await _send(writer, _POST)
    while not reader.at_eof():
        await _send(writer, b"X-Y: z\r\n")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(4096), 0.5)


async def dripping_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A megabyte, a kilobyte at a time."""
    await _send(writer, _POST + b"Content-Length: 1000000\r\n\r\n")
    while not reader.at_eof():
        await _send(writer, b" " * 1_000)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(4096), 0.5)


async def chunked_flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A gigabyte in chunks, until it is refused."""
    await _send(writer, _POST + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(_GIGABYTE // _PIECE):
        await _send(writer, b"%x\r\n" % _PIECE + b" " * _PIECE + b"\r\n")


async def declared_flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A gigabyte, announced."""
    await _send(writer, _POST + b"Content-Length: %d\r\n\r\n" % _GIGABYTE)
    for _ in range(_GIGABYTE // _PIECE):
        await _send(writer, b" " * _PIECE)


async def many_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """20,000 of them, and one of 256 KB."""
    await _send(writer, _POST + b"a: b\r\n" * 20_000 + b"c: " + b"d" * 262_144)
    await reader.read()


async def never_reading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Asks for a large answer and reads nothing of it."""
    asked = [{"user_id": f"unread-{number}", "top_k": 1000} for number in range(64)]
    body = orjson.dumps({"requests": asked})
    writer.write(b"POST /recall/batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(30)


CLIENTS: dict[str, tuple[Client, int, float]] = {
    "silent": (silent, 40, 0.5),
    "half a head": (half_a_head, 60, 0.5),
    "dripping head": (dripping_head, 80, 0.5),
    "dripping body": (dripping_body, 80, 0.5),
    "flood in chunks": (chunked_flood, 15, _PAUSE_S),
    "declared flood": (declared_flood, 15, _PAUSE_S),
    "many headers": (many_headers, 8, _PAUSE_S),
    "never reading": (never_reading, 2, _PAUSE_S),
}
"""What each does, how many there are of 300, and how long it rests before it begins again (s)."""


class Stop(Protocol):
    """An event of threads or of processes."""

    def is_set(self) -> bool: ...


def annoy(url: str, share: float, stop: Stop, results: Any) -> None:
    """Process entry: run `share` of the clients until `stop` is set; send how often each kind connected.

    An empty dict goes first, once they begin.
    """
    connected: Counter[str] = Counter()
    results.send({})
    asyncio.run(annoy_until(stop, url, share, connected))
    results.send(dict(connected))


async def annoy_until(stop: Stop, url: str, share: float, connected: Counter[str]) -> None:
    """Run the clients until `stop` is set, and count their connections."""
    running = [
        asyncio.create_task(_again_and_again(url, name, client, rest_s, connected, delay=place * rest_s))
        for name, (client, count, rest_s) in CLIENTS.items()
        for place in (number / max(1, round(share * count)) for number in range(max(1, round(share * count))))
    ]
    while not stop.is_set():
        await asyncio.sleep(0.05)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def _again_and_again(
    url: str, name: str, client: Client, rest_s: float, connected: Counter[str], *, delay: float
) -> None:
    parts = urlsplit(url)
    await asyncio.sleep(delay)  # not all of a kind at once
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            connected[name] += 1
            try:
                await client(reader, writer)
            finally:
                writer.transport.abort()
        await asyncio.sleep(rest_s)
