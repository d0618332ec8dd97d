"""The stress tests overload, cancel and soak in short, and that their judges can fail."""

from __future__ import annotations

import dataclasses
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from loadtest.stress import cancel, overload, soak
from loadtest.stress.crowd import Caller, Crowd, gather, judge
from loadtest.stress.flood import Flooded
from loadtest.stress.outcome import Options, passed
from loadtest.stress.raw_connection import RawConnection, Reply

CALLER = Caller("u1", {"a": 3.0, "b": 2.0, "c": 1.0})


def reply(status: int = 200, **changed: Any) -> Reply:
    answer = {
        "request_id": "r1",
        "user_id": "u1",
        "route": "t2diff",
        "degraded": False,
        "candidates": [{"item_id": item, "score": score} for item, score in CALLER.candidates.items()],
    }
    return Reply(status, orjson.dumps(answer | changed), closes=False)


def candidates(**scores: float) -> list[dict[str, Any]]:
    return [{"item_id": item, "score": score} for item, score in scores.items()]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (reply(), "answered"),
        (reply(candidates=candidates(a=3.0001, b=2.0, c=1.0)), "answered"),
        (reply(candidates=candidates(a=3.0, b=2.0, d=1.0)), "answered"),
        (reply(candidates=candidates(a=3.0, e=2.0, d=1.0)), "wrong: another user's candidates"),
        (reply(candidates=candidates(a=3.1, b=2.0, c=1.0)), "wrong: another user's candidates"),
        (reply(candidates=candidates(a=3.0, b=2.0)), "wrong: another user's candidates"),
        (reply(user_id="u2"), "wrong: another user's answer"),
        (reply(request_id="r2"), "wrong: the answer to another request"),
        (reply(status=429, request_id="r2"), "wrong: the answer to another request"),
        (reply(status=429), "http 429"),
        (reply(status=503), "http 503"),
        (reply(route="popular", reason="deadline"), "popular (deadline)"),
        (reply(route="popular", user_id="u2"), "wrong: another user's answer"),
    ],
)
def test_an_answer_is_held_to_its_question(answer: Reply, outcome: str) -> None:
    assert judge(answer, CALLER, "r1") == outcome


class Crossing:
    """A server that gives every other caller the answer of the one before."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._last = b""
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        number = 0
        while data := connection.recv(65536):
            number += 1
            head, body = data.split(b"\r\n\r\n")
            request_id = head.split(b"X-Request-ID: ")[1].split(b"\r\n")[0].decode()
            user = orjson.loads(body)["user_id"]
            answer = orjson.dumps(
                {"request_id": request_id, "user_id": user, "route": "t2diff", "candidates": []}
            )
            with self._lock:
                self._last, given = answer, self._last if number % 2 == 0 else answer
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(given) + given)


@pytest.fixture
def crossing() -> Iterator[Crossing]:
    server = Crossing()
    yield server
    server.close()


def test_crossed_answers_are_seen(crossing: Crossing) -> None:
    callers = [Caller(f"u{number}") for number in range(50)]
    crowded = gather(Crowd(crossing.url, callers, 5, num_requests=400, num_connections=4, cpu=None))
    assert sum(crowded.outcomes.values()) == 400
    assert crowded.outcomes["answered"] >= 190
    assert sum(n for outcome, n in crowded.outcomes.items() if outcome.startswith("wrong")) >= 100
    assert crowded.wrong


def test_a_reply_that_comes_in_parts_is_read_whole() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connection = RawConnection(f"http://127.0.0.1:{listening.getsockname()[1]}")
        there, _ = listening.accept()
        connection.send(b"x")
        assert connection.receive() is None
        whole = b"HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello"
        for place in range(0, len(whole), 7):
            assert connection.receive() is None
            there.sendall(whole[place : place + 7])
        found = None
        while found is None:
            found = connection.receive()
        assert found == (429, b"hello", True)
        there.close()
        select.select([connection.socket], [], [], 10)
        with pytest.raises(ConnectionResetError):
            connection.receive()
        connection.close()


FIGURES = {
    "multiple": 5.0,
    "goodput_share_of_peak": 0.95,
    "refused_since_sent_ms": {"p99": 4.0},
    "accepted_ms": {"p99": 700.0},
    "num_by_status": {"200": 10, "429": 20},
    "rss_mib_before": 100.0,
    "rss_mib_max": 101.0,
    "recovered_after_s": 0.1,
}


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"goodput_share_of_peak": 0.85}, False),
        ({"refused_since_sent_ms": {"p99": 11.0}}, False),
        ({"refused_since_sent_ms": None}, False),
        ({"accepted_ms": {"p99": 1001.0}}, False),
        ({"num_by_status": {"200": 10, "429": 20, "-1": 1}}, False),
        ({"num_by_status": {"200": 10, "429": 20, "500": 1}}, False),
        ({"rss_mib_max": 130.0}, False),
        ({"recovered_after_s": 2.5}, False),
    ],
)
def test_the_judge_of_an_overload_can_fail(change: dict[str, Any], holds: bool) -> None:
    assert passed(overload.checks_of(FIGURES | change, overload.Plan())) is holds


def test_latency_counts_from_the_intended_send() -> None:
    one = np.ones(1)
    flooded = Flooded(1 * one, 3 * one, 4 * one, 200 * one, one > 0, 0.0)
    assert flooded.latency_ms.tolist() == [3000.0]


def test_a_short_overload_refuses_answers_and_recovers() -> None:
    """Rates that this machine may not reach are not judged: only that everybody is answered or refused."""
    plan = dataclasses.replace(
        overload.SHORT,
        multiples=(8.0,),
        ramp_s=0.5,
        normal_s=0.5,
        peak_s=0.5,
        overload_s=1.0,
        first_rate=400.0,
    )
    figures = overload.overload_figures(plan, Options())
    (found,) = figures["overloads"]
    assert set(found["num_by_status"]) <= {"0", "200", "429"}
    assert found["num_by_status"]["429"] > 0
    assert found["num_by_status"]["200"] > 0
    growth = next(one for one in figures["checks"] if "memory" in one["name"])
    assert growth["passed"], growth


def test_a_short_crowd_that_comes_and_goes_crosses_nobody() -> None:
    figures = cancel.cancel_figures(cancel.SHORT, Options())
    assert figures["num_requests"] == cancel.SHORT.num_requests
    failed = [one for one in figures["checks"] if not one["passed"]]
    assert failed == []


def test_a_short_soak_swaps_and_gains_neither_descriptors_nor_threads() -> None:
    figures = soak.soak_figures(soak.SHORT, Options())
    assert figures["num_swaps"] == soak.SHORT.num_swaps
    unsure = ("memory", "gained")  # so few swaps say nothing about memory, or may come after the crowd
    failed = [one for one in figures["checks"] if not one["passed"]]
    assert [one for one in failed if not any(word in one["name"] for word in unsure)] == []
    assert all(one["value"] is None for one in failed if "gained" in one["name"]), figures["checks"]
