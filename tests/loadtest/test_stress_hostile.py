"""The stress tests of hostile clients and of made-up bytes: what they send, and that a judge can fail."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from loadtest.stress import hostile_clients
from loadtest.stress.hostile_clients import CLIENTS
from loadtest.stress.parser_fuzz import Outcome, Trial, made_up, run_random, seeds, targets
from service.http_protocol import guarded_protocol
from service.server import Listener


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def broken(error: Exception) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        raise error

    return parse


def test_there_are_300_hostile_clients() -> None:
    assert sum(count for _, count, _ in CLIENTS.values()) == 300


@pytest.mark.anyio
async def test_hostile_clients_of_every_kind_come_and_a_listener_answers_others() -> None:
    """A tenth of them; the same beside the whole service stands in end_to_end/test_hostile_clients.py."""
    bodies: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        bodies.append(message.get("body", b""))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    connected: Counter[str] = Counter()
    stop = threading.Event()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        listener = Listener(app, timeout_s=1, http=guarded_protocol(0.3))
        serving = asyncio.create_task(listener.serve(sockets=[bound]))
        url = "http://{}:{}".format(*bound.getsockname())
        annoying = asyncio.create_task(hostile_clients.annoy_until(stop, url, 0.1, connected))
        while len(connected) < len(CLIENTS) or connected["half a head"] < 12:  # 6 of them, each cut off once
            await asyncio.sleep(0.05)
        async with httpx.AsyncClient(timeout=20) as client:
            assert (await client.get(url)).text == "ok"
        stop.set()
        await annoying
        listener.should_exit = True
        await serving
    assert any(body.startswith(b'{"requests"') for body in bodies)


def test_an_exception_that_a_parser_does_not_promise_is_a_failure() -> None:
    trial = Trial(Outcome("random"), {"it": (broken(OverflowError("5ecret")), (ValueError,))})
    trial(b"\x00abc")
    trial(b"\x00abd")
    assert (trial.outcome.num_inputs, trial.outcome.num_refused) == (2, 0)
    (where,) = trial.outcome.failures
    assert where.startswith("it: OverflowError at test_stress_hostile.py:")
    assert trial.outcome.failures[where] == "b'abc'"
    allowed = Trial(Outcome("random"), {"it": (broken(ValueError()), (ValueError,))})
    allowed(b"\x00")
    assert (allowed.outcome.num_refused, allowed.outcome.failures) == (1, {})


def test_made_up_bytes_reach_every_parser_and_are_the_same_for_the_same_seed() -> None:
    first = [data for data, _ in zip(made_up(1), range(500), strict=False)]
    assert first == [data for data, _ in zip(made_up(1), range(500), strict=False)]
    assert len(Counter(data[0] % len(targets()) for data in first)) == len(targets())
    assert len(seeds()) > 100


def test_the_parsers_stand_half_a_second_of_made_up_bytes() -> None:
    trial = Trial(Outcome("random"), targets())
    run_random(trial, seconds=0.5, seed=2)
    assert trial.outcome.failures == {}
    assert trial.outcome.num_inputs > 100
    assert 0 < trial.outcome.num_refused <= trial.outcome.num_inputs
