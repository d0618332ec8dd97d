"""The limits of a connection, on a real listener and raw sockets; nothing here depends on how fast it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from service import http_protocol
from service.http_protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, guarded_protocol
from service.server import Listener

pytestmark = pytest.mark.anyio
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class App:
    """Answers `answer` once `go_on` is set; reads no body."""

    def __init__(self) -> None:
        self.answer = b"fine"
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.num_begun = self.num_ended = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_begun += 1
        await self.go_on.wait()
        headers = [(b"content-length", b"%d" % len(self.answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.answer})
        self.num_ended += 1


class Peer:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def rest(self) -> bytes:
        """All that comes until the other side closes, which it must."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(65536), 20):
                data += piece
        return data

    async def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", await self.rest())]


Connect = Callable[..., Awaitable[Peer]]


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def connect(app: App, request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """`await connect()`: a connection to a listener whose patience is 0.3 s, or the parameter's."""
    patience = getattr(request, "param", 0.3)
    listener = Listener(app, timeout_s=1, http=guarded_protocol(patience))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(listener.serve(sockets=[bound]))
        while not listener.started:
            await asyncio.sleep(0.01)
        peers: list[Peer] = []

        async def connected(**options: Any) -> Peer:
            peer = Peer(*await asyncio.open_connection(*bound.getsockname(), **options))
            peers.append(peer)
            return peer

        yield connected
        app.go_on.set()
        for peer in peers:
            peer.writer.transport.abort()
        listener.should_exit = True
        await serving


HALVES = [b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: ", GET[:-2], GET + GET[:-2]]


@pytest.mark.parametrize("half", HALVES)
async def test_a_half_sent_head_gets_408_and_is_closed(connect: Connect, half: bytes) -> None:
    peer = await connect()
    await peer.send(half)
    assert await peer.statuses() == [*[200] * half.startswith(GET), 408]


async def test_a_head_that_drips_is_not_given_more_time_for_each_drop(connect: Connect) -> None:
    peer = await connect()

    async def drip() -> None:
        while not peer.reader.at_eof():
            await peer.send(b"GET / HTTP/1.1\r\n" if first else b"X: y\r\n")
            first.clear()
            await asyncio.sleep(0.05)

    first = [True]
    dripping = asyncio.create_task(drip())
    assert await peer.statuses() == [408]
    dripping.cancel()


@pytest.mark.parametrize("connect", [20.0], indirect=True)
async def test_a_head_in_many_pieces_is_read_whole(connect: Connect) -> None:
    peer = await connect()
    for byte in GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"):
        await peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await peer.statuses() == [200]


@pytest.mark.parametrize(
    "after",
    [b"\r\n", b"\r\n" * 50],
    ids=["an empty line", "many"],
)
async def test_a_peer_that_sends_no_request_is_closed(connect: Connect, after: bytes) -> None:
    peer = await connect()
    await peer.send(after)
    assert await peer.rest() == b""


async def test_the_rest_of_a_body_that_was_answered_already_is_not_waited_for_forever(
    connect: Connect,
) -> None:
    """uvicorn drops its keep-alive timer at the first byte that follows the answer, for good."""
    peer = await connect()
    await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert await peer.reader.readuntil(b"fine")
    await peer.send(b"{")
    assert await peer.rest() == b""


async def test_what_follows_an_upgrade_that_we_do_not_do_is_not_waited_for_forever(connect: Connect) -> None:
    peer = await connect()
    await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert await peer.reader.readuntil(b"fine")
    await peer.send(b"\x81\x00")
    await peer.rest()  # refused, and closed in any case


def head(*lines: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(line + b"\r\n" for line in lines)


LARGE = {
    "one line too many": head(*[b"a: b"] * MAX_HEADERS) + b"\r\n",
    "20,000 lines": head(*[b"a: b"] * 20_000) + b"\r\n",
    "one value": head(b"a: " + b"b" * MAX_HEAD_BYTES) + b"\r\n",
    "256 KiB in fifty lines": head(*[b"a: " + b"b" * 5_240] * 50) + b"\r\n",
    "a URL": b"GET /" + b"u" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a value without an end": head(b"a: " + b"b" * 2_000_000)[:-2],
    "a name without an end": head(b"n" * 2_000_000)[:-2],
    "a URL without an end": b"GET /" + b"u" * 2_000_000,
}


@pytest.mark.parametrize("connect", [20.0], indirect=True)
@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
async def test_a_large_head_gets_431_before_it_reaches_the_app(
    connect: Connect, app: App, large: bytes
) -> None:
    peer = await connect()
    await peer.send(large)
    answer = await peer.rest()
    assert app.num_begun == 0
    if answer:  # else the connection was reset before the answer could be read: it still was refused
        assert answer.startswith(b"HTTP/1.1 431 ")
        problem = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (problem["status"], problem["type"]) == (431, "urn:t2diff:problem:head-too-large")


async def test_a_head_at_the_limits_is_welcome(connect: Connect, app: App) -> None:
    peer = await connect()
    lines = [b"a: " + b"b" * 300] * (MAX_HEADERS - 2)
    await peer.send(head(*lines, b"Connection: close") + b"\r\n")
    assert await peer.statuses() == [200]


@pytest.mark.parametrize("connect", [20.0], indirect=True)
async def test_a_large_body_does_not_count_as_head(connect: Connect, app: App) -> None:
    """Body and next head in one read: the second request is not refused for the first one's size."""
    peer = await connect()
    body = b" " * 200_000
    await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + body + GET[:-2])
    await peer.send(b"Connection: close\r\n\r\n")
    assert await peer.statuses() == [200, 200]


async def test_requests_sent_ahead_are_bounded(connect: Connect, app: App) -> None:
    app.go_on.clear()
    peer = await connect()
    await peer.send(GET * 10_000)
    await peer.rest()
    assert app.num_begun <= 1
    app.go_on.set()
    peer = await connect()
    await peer.send(GET * MAX_PIPELINED + head(b"Connection: close") + b"\r\n")
    assert await peer.statuses() == [200] * (MAX_PIPELINED + 1)


async def test_what_is_not_http_is_a_problem(connect: Connect) -> None:
    peer = await connect()
    await peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    answer = await peer.rest()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json\r\n" in answer


async def test_nothing_is_written_before_the_answer_that_is_still_owed(connect: Connect, app: App) -> None:
    """Nonsense behind a good request must not be answered in its place."""
    app.go_on.clear()
    peer = await connect()
    await peer.send(GET + b"\x00\x00\r\n\r\n")
    assert await peer.rest() == b""


async def test_half_a_head_behind_a_request_at_work_leaves_that_one_its_answer(
    connect: Connect, app: App
) -> None:
    app.go_on.clear()
    peer = await connect()
    await peer.send(GET + GET[:-2])
    while app.num_begun == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)  # longer than the patience
    app.go_on.set()
    assert await peer.statuses() == [200]


async def test_an_answer_that_nobody_reads_is_given_up(connect: Connect, app: App) -> None:
    app.answer = b" " * 20_000_000
    peer = await connect(limit=1)
    await peer.send(GET)
    while app.num_ended == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.0)  # not read meanwhile: 20 MB fit into no socket's buffer
    assert len(await peer.rest()) < len(app.answer)


@pytest.mark.parametrize("connect", [30.0], indirect=True)  # nobody is given up for being slow
async def test_unread_answers_share_a_bounded_room(
    connect: Connect, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that waits longest goes; the others may be read."""
    monkeypatch.setattr(http_protocol, "MAX_UNREAD_BYTES", 30_000_000)
    app.answer = b" " * 20_000_000
    first, second = await connect(limit=1), await connect(limit=1)
    await first.send(GET)
    while app.num_ended == 0:
        await asyncio.sleep(0.01)
    await second.send(head(b"Connection: close") + b"\r\n")
    assert len(await second.rest()) > len(app.answer)
    assert len(await first.rest()) < len(app.answer)


async def test_idle_connections_do_not_count_as_requests(connect: Connect) -> None:
    """uvicorn's limit_concurrency would answer 503 here; nothing of the kind is set."""
    idle = [await connect() for _ in range(200)]
    peer = await connect()
    await peer.send(head(b"Connection: close") + b"\r\n")
    assert await peer.statuses() == [200]
    assert not any(other.reader.at_eof() for other in idle)
