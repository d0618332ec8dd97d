"""The shortest way of a plain POST /recall, answered or refused, on real sockets.

A request sent in two pieces takes the usual way: what both answer must be the same.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.http_protocol import guarded_protocol
from service.recall_protocol import WholeCycle
from service.server import Listener, public_protocol
from tests.service.plain_requests import HEAD, framed

pytestmark = pytest.mark.anyio
ASKED = b'{"user_id":"u","top_k":3,"sequence":[{"item_id":"i3","timestamp":5}]}'
CHANGING = {"date", "server-timing"}


@asynccontextmanager
async def serving(
    running: Any, *, app: Any = None, keep_alive_s: float = 75.0, header_timeout_s: float = 10.0
) -> AsyncIterator[int]:
    """The service behind its own protocol on a real socket: the port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        protocol = public_protocol(running.service, guarded_protocol(header_timeout_s))
        server = Listener(app or running.app, timeout_s=1, http=protocol)
        server.config.timeout_keep_alive = keep_alive_s  # type: ignore[assignment]  # a float does as well
        task = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield bound.getsockname()[1]
        server.should_exit = True
        await task


@pytest.fixture
async def listening(start: Any) -> AsyncIterator[tuple[Any, int]]:
    """A service with few places, and its port."""
    running = await start(max_queue=4, max_batch=1)
    async with serving(running) as port:
        yield running, port


async def exchange(port: int, *parts: bytes, replies: int = 1) -> list[tuple[int, dict[str, str], Any]]:
    """Send the parts on one connection, each after a moment; read so many answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.02)
    found = []
    for _ in range(replies):
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await asyncio.wait_for(reader.readexactly(int(headers["content-length"])), 10)
        found.append((int(head[0].split()[1]), headers, json.loads(body)))
    writer.close()
    return found


async def test_the_early_refusal_is_the_applications_but_for_its_time(listening: Any) -> None:
    running, port = listening
    running.service.in_flight.count = running.service.in_flight.limit
    named = framed(extra=b'X-Request-ID: a"b\\c\r\n')
    ((status, early, early_body),) = await exchange(port, named)
    ((usual_status, usual, usual_body),) = await exchange(port, named[:30], named[30:])
    assert status == usual_status == 429
    assert early.keys() == usual.keys()
    assert {k: v for k, v in early.items() if k not in CHANGING} == {
        k: v for k, v in usual.items() if k not in CHANGING
    }
    assert early_body == usual_body
    assert early_body["request_id"] == early["x-request-id"] == 'a"b\\c'
    counted = running.service.metrics.registry.get_sample_value(
        "t2diff_responses_total", {"route": "recall", "status": "429"}
    )
    assert counted == 2


async def test_a_connection_goes_on_after_a_refusal_and_refuses_again(listening: Any) -> None:
    running, port = listening
    in_flight = running.service.in_flight
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask() -> int:
        writer.write(framed())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return int(head.split()[1])

    statuses = []
    for full in (False, True, True, False, True, False):
        in_flight.count = in_flight.limit if full else 0
        statuses.append(await ask())
    assert statuses == [200, 429, 429, 200, 429, 200]
    writer.close()


async def test_the_rest_of_a_request_is_never_taken_for_a_request(listening: Any) -> None:
    """A body that looks like a request, sent apart from its head, while the service fills up in between."""
    running, port = listening
    inner = framed()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(inner))
    await asyncio.sleep(0.05)
    running.service.in_flight.count = running.service.in_flight.limit
    writer.write(inner)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), 0.1)
    writer.close()


async def test_the_rest_of_a_head_is_never_taken_for_a_request(listening: Any) -> None:
    running, port = listening
    running.service.in_flight.count = running.service.in_flight.limit
    ((status, _, _),) = await exchange(port, b"POST /nothing HTTP/1.1\r\nHost: x\r\nX-A: ", framed())
    assert status == 404


async def test_pipelined_requests_are_each_answered_in_order(listening: Any) -> None:
    running, port = listening
    running.service.in_flight.count = running.service.in_flight.limit
    two = framed(extra=b"X-Request-ID: first\r\n") + framed(extra=b"X-Request-ID: second\r\n")
    found = await exchange(port, two, replies=2)
    assert [headers["x-request-id"] for _, headers, _ in found] == ["first", "second"]


async def test_more_connections_than_places_at_one_moment_are_refused_by_the_protocol(listening: Any) -> None:
    """All are readable in one turn of the loop, before any task has run: arrivals count too."""
    running, port = listening
    in_flight = running.service.in_flight
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    begun, recall = 0, running.service.recall

    async def counted(*arguments: Any) -> Any:
        nonlocal begun
        begun += 1
        return await recall(*arguments)

    running.service.recall = counted
    await asyncio.sleep(0.1)
    blocker = asyncio.create_task(running.service._batcher.call(lambda: asyncio.run(asyncio.sleep(0.2))))
    await asyncio.sleep(0.01)
    most = 0
    body = b'{"user_id":"u","sequence":[{"item_id":"i3"}]}'
    for connection in sockets:
        connection.sendall(framed(body))
    for _ in range(50):
        await asyncio.sleep(0.005)
        most = max(most, in_flight.count)
    assert most == 4, "as many as may queue while the device is held up"
    await blocker
    await asyncio.sleep(0.1)
    statuses = []
    for connection in sockets:
        statuses.append(int(connection.recv(65536)[9:12]))
        connection.close()
    assert (statuses.count(200), statuses.count(429)) == (4, 36)
    assert (in_flight.count, in_flight.arriving) == (0, 0)
    assert begun == in_flight.limit, "the others' tasks were never made"


@pytest.mark.parametrize(
    ("body", "extra", "expected"),
    [
        (ASKED, b"", 200),
        (b'{"user_id":"nobody"}', b"X-Deadline-Ms: 900\r\n", 200),
        (b'{"user_id":7,"top_k":0}', b"", 422),
        (b"{", b"", 400),
        (b"", b"", 400),
        (ASKED, b"X-Deadline-Ms: soon\r\n", 400),
        (ASKED, b"X-Experiment-Arm: blue\r\n", 400),
        (b"x" * 3000, b"", 413),
    ],
)
async def test_both_ways_answer_alike(
    start: Any, body: bytes, extra: bytes, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[str] = []
    run = WholeCycle.run_asgi

    async def noted(self: WholeCycle, app: Any) -> None:
        ways.append("plain")
        await run(self, app)

    monkeypatch.setattr(WholeCycle, "run_asgi", noted)
    running = await start(max_body_bytes=2048)
    async with serving(running) as port:
        whole = framed(body, extra=extra + b"X-Request-ID: same\r\n")
        ((status, plain, plain_body),) = await exchange(port, whole)
        ((usual_status, usual, usual_body),) = await exchange(port, whole[:30], whole[30:])
    assert ways == ["plain"], "once each way"
    assert status == usual_status == expected
    assert list(plain) == list(usual)
    assert {k: v for k, v in plain.items() if k not in CHANGING} == {
        k: v for k, v in usual.items() if k not in CHANGING
    }
    assert plain_body == usual_body


async def test_another_media_type_is_refused_either_way(listening: Any) -> None:
    _, port = listening
    head = HEAD.replace(b"application/json", b"text/plain")
    ((status, _, body),) = await exchange(port, framed(head=head))
    assert (status, body["type"]) == (415, "urn:t2diff:problem:unsupported-media-type")


async def test_what_follows_on_the_connection_waits_for_the_answer(listening: Any) -> None:
    """Behind a plain request that takes its time one that is refused at once, and one in pieces."""
    running, port = listening
    blocker = asyncio.create_task(running.service._batcher.call(lambda: asyncio.run(asyncio.sleep(0.2))))
    one, two, three = (
        framed(body, extra=b"X-Request-ID: %d\r\n" % number)
        for number, body in enumerate((ASKED, b"{", ASKED), start=1)
    )
    found = await exchange(port, one, two, three[:50], three[50:], replies=3)
    await blocker
    assert [(status, headers["x-request-id"]) for status, headers, _ in found] == [
        (200, "1"),
        (400, "2"),
        (200, "3"),
    ]


async def test_a_caller_who_leaves_disturbs_nobody(listening: Any) -> None:
    running, port = listening
    blocker = asyncio.create_task(running.service._batcher.call(lambda: asyncio.run(asyncio.sleep(0.2))))
    await asyncio.sleep(0.01)
    with socket.create_connection(("127.0.0.1", port)) as gone:
        gone.sendall(framed(ASKED))
        await asyncio.sleep(0.05)
        assert running.service.in_flight.count == 1
    await blocker
    ((status, _, _),) = await exchange(port, framed(ASKED))
    assert status == 200
    assert (running.service.in_flight.count, running.service.in_flight.arriving) == (0, 0)


async def test_a_shutdown_waits_for_the_answer_and_says_goodbye(start: Any) -> None:
    running = await start()
    async with serving(running) as port:
        blocker = asyncio.create_task(running.service._batcher.call(lambda: asyncio.run(asyncio.sleep(0.3))))
        await asyncio.sleep(0.01)
        asking = asyncio.create_task(exchange(port, framed(ASKED)))
        await asyncio.sleep(0.1)
    ((status, headers, body),) = await asking
    await blocker
    assert (status, headers["connection"]) == (200, "close")
    assert len(body["candidates"]) == 3


async def test_an_idle_connection_is_closed_after_plain_requests_too(start: Any) -> None:
    running = await start()
    async with serving(running, keep_alive_s=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            await asyncio.sleep(0.2)  # each time nearly idle for too long
            writer.write(framed())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


@pytest.mark.parametrize("between", [b"", b"\r\n"])  # an empty line: the peer then owes a request in time
async def test_no_timer_of_an_idle_connection_cuts_an_answer_off(start: Any, between: bytes) -> None:
    running = await start()
    async with serving(running, keep_alive_s=0.3, header_timeout_s=0.3) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def ask() -> bytes:
            writer.write(framed(ASKED))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            return head

        await ask()
        writer.write(between)
        await asyncio.sleep(0.1)
        blocker = asyncio.create_task(running.service._batcher.call(lambda: asyncio.run(asyncio.sleep(0.6))))
        assert b"connection: close" not in await ask()
        await blocker
        assert b"200 OK" in await ask()
        writer.close()


async def test_a_body_far_too_large_ends_the_connection(start: Any) -> None:
    running = await start(max_body_bytes=1024)
    async with serving(running) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(framed(b" " * 20_000))
        answer = await asyncio.wait_for(reader.read(), 10)  # to the end of the connection
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"connection: close") == 1


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([(b"content-length", b"3")], b"four"),
        ([], b"four"),
        ([(b"content-length", b"4"), (b"x", b"a\r\nset-cookie: b")], b"four"),
    ],
)
async def test_an_answer_that_would_be_misread_is_not_sent(
    listening: Any, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    async def careless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    running, _ = listening
    async with serving(running, app=careless) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(framed())
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_an_answer_in_pieces_goes_the_usual_way(listening: Any) -> None:
    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        asked = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": asked["body"][:2], "more_body": True})
        await send({"type": "http.response.body", "body": b"abc}"})
        assert (await receive())["type"] == "http.disconnect"

    running, _ = listening
    async with serving(running, app=streaming) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(framed())
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert await asyncio.wait_for(reader.readexactly(6), 10) == b'{"abc}'
        writer.close()
