"""Admission: how many users may be recalled at once, counted from when their request is there."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from service.errors import QueueFullError
from service.in_flight import WAIT_SHARE, InFlight

pytestmark = pytest.mark.anyio


def test_as_many_as_the_limit_come_in_and_the_next_is_refused() -> None:
    in_flight = InFlight(2, deadline_s=1.0)
    with in_flight, in_flight:
        assert in_flight.full
        assert in_flight.pressure == 1
        with pytest.raises(QueueFullError) as refused, in_flight:
            pass
        assert refused.value.headers["Retry-After"] == "1"
        assert in_flight.count == 2, "who was refused is not counted"
    assert (in_flight.count, in_flight.pressure) == (0, 0)


def test_one_that_fails_leaves_its_place() -> None:
    in_flight = InFlight(1, deadline_s=1.0)
    with pytest.raises(ZeroDivisionError), in_flight:
        raise ZeroDivisionError
    assert in_flight.count == 0


def test_full_is_also_when_the_next_would_wait_for_half_of_the_deadline() -> None:
    seconds = {"each": 0.1}
    in_flight = InFlight(100, deadline_s=1.0, expected_wait_s=lambda ahead: ahead * seconds["each"])
    for _ in range(4):
        in_flight.__enter__()
    assert not in_flight.full
    in_flight.__enter__()
    assert in_flight.full, f"5 x 0.1 s is {WAIT_SHARE} of the deadline"
    assert in_flight.pressure == pytest.approx(0.5 / WAIT_SHARE)
    seconds["each"] = 0.01
    assert not in_flight.full


def test_what_was_read_in_this_turn_of_the_loop_counts_for_what_is_read_after_it_alone() -> None:
    in_flight = InFlight(2, deadline_s=1.0)
    in_flight.arriving = 2
    assert in_flight.full_for_arrivals
    assert not in_flight.full, "the first of them must not refuse itself"


async def test_a_request_counts_from_when_its_body_is_there_until_it_is_answered(start: Any) -> None:
    running = await start()
    in_flight = running.service.in_flight
    held = asyncio.Event()

    async def slowly() -> Any:
        yield b'{"user_id": "u"'
        await held.wait()
        yield b', "sequence": [{"item_id": "i3"}]}'

    headers = {"Content-Type": "application/json"}
    task = asyncio.create_task(running.client.post("/recall", content=slowly(), headers=headers))
    await asyncio.sleep(0.02)
    assert in_flight.count == 0, "a body that dribbles in takes nobody's place"
    blocker = asyncio.create_task(running.service._batcher.call(lambda: time.sleep(0.2)))
    await asyncio.sleep(0.01)
    held.set()
    while in_flight.count == 0:
        await asyncio.sleep(0.001)
    assert in_flight.count == 1
    assert (await task).json()["route"] == "t2diff"
    await blocker
    assert in_flight.count == 0


async def test_a_refusal_is_made_before_the_body_is_read(start: Any) -> None:
    running = await start(max_queue=1, max_batch=1)
    running.service.in_flight.count = 2
    read = 0
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/recall",
        "headers": [(b"content-type", b"application/json")],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b'{"user_id": "u"}', "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await running.app(scope, receive, send)
    assert sent[0]["status"] == 429
    assert read == 0
    for path in ("/recall", "/recall/batch"):
        response = await running.client.post(path, json={"user_id": "u"})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
    assert (await running.client.get("/v2/health/ready")).status_code == 200
    running.service.in_flight.count = 0
    assert (await running.client.post("/recall", json={"user_id": "u"})).status_code == 200


def test_the_places_there_are_now_shrink_with_the_wait_they_would_mean() -> None:
    quick = InFlight(100, deadline_s=1.0)
    assert quick.places_now == math.inf
    with quick:
        assert quick.places_now == pytest.approx(100)
    slow = InFlight(100, deadline_s=1.0, expected_wait_s=lambda ahead: 0.05 * ahead)
    with slow, slow:
        assert slow.places_now == pytest.approx(10)  # ten of 50 ms are half of the deadline
