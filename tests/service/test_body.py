"""Reading a body by itself; what callers see of it is in test_http."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.body import BodyBudget, read_body
from service.errors import BodyTooLargeError, InvalidBodyError, TooManyBodiesError
from service.middleware import RequestContext

pytestmark = pytest.mark.anyio


def body_in(*pieces: bytes) -> Any:
    """An ASGI `receive` of these pieces."""
    left = [*pieces]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


def reading(receive: Any, *, max_bytes: int = 10, budget: BodyBudget | None = None) -> Any:
    context = RequestContext(request_id="r", started=time.monotonic(), headers={})
    budget = BodyBudget(max_bytes) if budget is None else budget
    return read_body(context, receive, max_bytes=max_bytes, timeout_s=20, budget=budget)


async def test_a_read_that_is_cancelled_as_the_body_comes_is_cancelled() -> None:
    arrived = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await arrived.wait()
        return {"type": "http.request", "body": b"{}", "more_body": False}

    task = asyncio.create_task(reading(receive))
    await asyncio.sleep(0)
    arrived.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("pieces", [[b"{}"], [b"{", b"}"], [b"", b"{", b"", b"}", b""]])
async def test_a_body_is_the_same_in_one_piece_and_in_many(pieces: list[bytes]) -> None:
    body = await reading(body_in(*pieces), max_bytes=2)
    assert (body, type(body)) == (b"{}", bytes)


async def test_bodies_that_are_still_arriving_share_a_bounded_room_and_give_it_back() -> None:
    """Two that come slowly fill it: a third is refused, one in a single piece is not; then there is room."""
    budget = BodyBudget(20)
    go_on = asyncio.Event()

    def slow() -> Any:
        pieces = iter([b" " * 9, b"1"])

        async def receive() -> dict[str, Any]:
            piece = next(pieces)
            if piece == b"1":
                await go_on.wait()
            return {"type": "http.request", "body": piece, "more_body": piece != b"1"}

        return receive

    waiting = [asyncio.create_task(reading(slow(), budget=budget)) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert budget.held_bytes == 18
    with pytest.raises(TooManyBodiesError) as refused:
        await reading(slow(), budget=budget)
    assert refused.value.headers == {"Connection": "close", "Retry-After": "1"}
    assert await reading(body_in(b" " * 10), budget=budget) == b" " * 10
    go_on.set()
    assert await asyncio.gather(*waiting) == [b" " * 9 + b"1"] * 2
    assert budget.held_bytes == 0


async def test_what_a_refused_or_abandoned_body_held_is_given_back() -> None:
    budget = BodyBudget(100)
    with pytest.raises(BodyTooLargeError):
        await reading(body_in(b" " * 9, b" " * 9, b""), budget=budget)

    async def gone() -> dict[str, Any]:
        pieces.append(b"")
        return {
            "type": "http.request" if len(pieces) == 1 else "http.disconnect",
            "body": b"{",
            "more_body": 1,
        }

    pieces: list[bytes] = []
    with pytest.raises(InvalidBodyError):
        await reading(gone, budget=budget)
    assert budget.held_bytes == 0
