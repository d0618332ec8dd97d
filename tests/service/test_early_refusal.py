"""The refusal before a request is parsed: only of what is plainly one whole request; on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.early_refusal import whole_recall
from service.http_protocol import guarded_protocol
from service.server import Listener, public_protocol

pytestmark = pytest.mark.anyio
BODY = b'{"user_id":"nobody"}'
HEAD = b"POST /recall HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def framed(body: bytes = BODY, head: bytes = HEAD, extra: bytes = b"") -> bytes:
    return head + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_one_whole_request_in_the_plainest_framing_is_recognised_with_its_id() -> None:
    made = whole_recall(framed())
    assert made is not None
    assert len(made) == 32
    assert whole_recall(framed(extra=b"X-Request-ID:  Abc-1\r\n")) == "Abc-1"
    assert len(whole_recall(framed(extra=b"X-Request-ID: two words\r\n")) or "") == 32
    assert whole_recall(framed(extra=b"Connection: keep-alive\r\n")) is not None
    assert whole_recall(framed(body=b"\r\n\r\n{}")) is not None, "a blank line in the body ends no head"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        framed()[:-1],
        framed() + b"P",
        framed() + framed(),
        framed(head=HEAD.replace(b"/recall", b"/recall/batch")),
        framed(head=HEAD.replace(b"POST", b"GET")),
        framed(head=HEAD.replace(b"1.1", b"1.0")),
        framed(extra=b"Content-Length: 20\r\n"),
        framed(extra=b"Transfer-Encoding: chunked\r\n"),
        framed(extra=b"Transfer-Encoding : chunked\r\n"),
        framed(extra=b"X: y\nTransfer-Encoding: chunked\r\n"),
        framed(extra=b"Connection: close\r\n"),
        framed(extra=b"Expect: 100-continue\r\n"),
        framed(extra=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        HEAD + b"Content-Length : 20\r\n\r\n" + BODY,
        HEAD + b"X: content-length: 20\r\n\r\n" + BODY,
        HEAD + b"Content-Length: +20\r\n\r\n" + BODY,
        HEAD + b"\r\n" + BODY,
        HEAD + b"Content-Length: 20\r\n",
    ],
)
def test_anything_else_takes_the_usual_way(data: bytes) -> None:
    assert whole_recall(data) is None


@pytest.fixture
async def listening(start: Any) -> AsyncIterator[tuple[Any, int]]:
    """A service behind its own protocol on a real socket, and the port."""
    running = await start(max_queue=4, max_batch=1)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = Listener(
            running.app, timeout_s=1, http=public_protocol(running.service, guarded_protocol(10))
        )
        task = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield running, bound.getsockname()[1]
        server.should_exit = True
        await task


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
    changing = {"date", "server-timing"}
    assert {k: v for k, v in early.items() if k not in changing} == {
        k: v for k, v in usual.items() if k not in changing
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
