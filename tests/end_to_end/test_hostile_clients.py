"""A running service and callers that mean it no good: right answers, no 5xx, no hang, flat memory."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from loadtest.stress.poisons import Poison, poisons, send_all

MEMORY_LIMIT_BYTES = 96 * 2**20
"""What the worst bodies may leave behind once: far below what they send (some gigabytes are announced)."""


@pytest.fixture(scope="module")
def impatient(serve: Any, tiny_bundles: Path, own_redis: Any) -> Any:
    return serve(tiny_bundles, redis_url=own_redis.url, header_timeout_s=0.5, receive_timeout_s=0.5)


def answers(served: Any) -> bool:
    with served.client() as client:
        response = client.post("/recall", json={"user_id": "u", "top_k": 3})
    return response.status_code == 200 and len(response.json()["candidates"]) == 3


def test_there_are_200_poisons_and_each_has_a_name_of_its_own() -> None:
    names = [poison.name for poison in poisons()]
    assert len(names) == len(set(names)) >= 200


def test_every_poison_gets_what_it_deserves(impatient: Any) -> None:
    assert answers(impatient)
    process = psutil.Process(impatient.process.pid)
    before = process.memory_info().rss
    effects = send_all(impatient.url, poisons())
    wrong = {effect.poison.name: effect.status for effect in effects if not effect.right}
    assert wrong == {}
    for status in ("500", "502", "503", "504"):
        assert impatient.metric("t2diff_responses_total", status=status) == 0
    assert answers(impatient)
    assert process.memory_info().rss - before < MEMORY_LIMIT_BYTES


def test_a_wrong_answer_to_a_poison_would_be_seen(impatient: Any) -> None:
    good = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    (effect,) = send_all(impatient.url, [Poison("not poisonous", (good,), (400,))])
    assert (effect.status, effect.right) == (200, False)


def test_half_open_connections_are_closed_and_leave_nothing_behind(impatient: Any) -> None:
    assert answers(impatient)
    process = psutil.Process(impatient.process.pid)
    before = process.num_fds()
    halves = [b"POST /rec", b"POST /recall HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"\r\n"]
    connections = [socket.create_connection(("127.0.0.1", impatient.port), timeout=20) for _ in range(90)]
    for number, connection in enumerate(connections):
        connection.sendall(halves[number % 3])
    assert answers(impatient)
    for connection in connections:
        with connection, contextlib.suppress(ConnectionError):
            while connection.recv(65536):  # until the service closes it
                pass
    assert process.num_fds() <= before + 2


def test_idle_connections_take_no_place_from_requests(impatient: Any) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(300):
            idle.enter_context(socket.create_connection(("127.0.0.1", impatient.port), timeout=20))
        assert answers(impatient)


def test_a_user_with_a_flood_of_events_is_capped(impatient: Any, own_redis: Any) -> None:
    with impatient.client() as client:
        for start in range(0, 20_000, 1_000):
            events = [
                {"user_id": "flood", "item_id": f"i{n % 60}", "timestamp": n}
                for n in range(start, start + 1_000)
            ]
            assert client.post("/events", json=events).json()["accepted"] == 1_000
        with redis.Redis.from_url(own_redis.url) as connection:
            stored = connection.get("t2diff:seq1:flood")
        assert stored is not None
        times = re.findall(rb"^\d+$", stored, re.MULTILINE)
        assert [int(time) for time in times] == list(range(19_800, 20_000))
        assert client.post("/recall", json={"user_id": "flood", "top_k": 5}).json()["route"] == "t2diff"
