"""A running service while Redis stops and dies, bundles change and spoil, and it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from index_builder.publish import Store
from tests import forked
from tests.waiting import eventually

TINY = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3}
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in range(1, 11)]


def redis_pid_of(served: Any) -> int:
    folder = re.search(r"data in (\S+)", served.greeting)[1]  # type: ignore[index]
    return int((Path(folder) / "redis.pid").read_text())


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def embedded(serve: Any, tiny_bundles: Path) -> Any:
    return serve(tiny_bundles, redis_read_timeout_ms=100, breaker_cooldown_ms=200)


@pytest.fixture(scope="module")
def with_own(serve: Any, tiny_bundles: Path, own_redis: Any) -> Any:
    return serve(tiny_bundles, redis_url=own_redis.url, redis_read_timeout_ms=100, breaker_cooldown_ms=200)


@pytest.mark.parametrize("kind", ["embedded", "own"])
def test_a_stopped_redis_keeps_answers_at_200_degraded_and_continuing_it_restores_them(
    kind: str, request: pytest.FixtureRequest
) -> None:
    served = request.getfixturevalue("embedded" if kind == "embedded" else "with_own")
    pid = redis_pid_of(served) if kind == "embedded" else request.getfixturevalue("own_redis").process.pid
    asked = {"user_id": "u", "top_k": 5}
    with served.client() as client:
        client.post("/events", json=[{"user_id": "u", **behaviour} for behaviour in SEQUENCE])
        assert client.post("/recall", json=asked).json()["route"] == "t2diff"
        with stopped(pid):
            answers = []
            for _ in range(30):
                response = client.post("/recall", json=asked)
                assert response.status_code == 200
                answers.append(response.json())
                assert client.get("/v2/health/live").status_code == 200
                assert client.get("/v2/health/ready").status_code == 200
            assert {(a["route"], a["degraded"], len(a["candidates"])) for a in answers} == {
                ("popular", True, 5)
            }
            assert {a["reason"] for a in answers} == {"store_timeout", "store_breaker_open"}
            given = client.post("/recall", json={**asked, "sequence": SEQUENCE}).json()
            assert (given["route"], given["degraded"]) == ("t2diff", False)
            assert served.metric("t2diff_redis_breaker_state", operation="read", state="closed") == 0
        eventually(lambda: client.post("/recall", json=asked).json()["route"] == "t2diff", "not restored")
        assert served.metric("t2diff_redis_breaker_state", operation="read", state="closed") == 1
        assert served.metric("t2diff_fallbacks_total", reason="store_timeout", degraded="true") > 0


def test_a_killed_embedded_redis_is_restarted_and_keeps_what_was_acknowledged(embedded: Any) -> None:
    asked = {"user_id": "acknowledged", "top_k": 5}
    with embedded.client() as client:
        for behaviour in SEQUENCE:
            assert client.post("/events", json={"user_id": "acknowledged", **behaviour}).status_code == 200
        before = client.post("/recall", json=asked).json()
        os.kill(redis_pid_of(embedded), signal.SIGKILL)
        assert client.post("/recall", json=asked).status_code == 200
        eventually(lambda: client.post("/recall", json=asked).json()["route"] == "t2diff", "not restored")
        assert client.post("/recall", json=asked).json()["candidates"] == before["candidates"]
        eventually(
            lambda: client.post("/events", json={"user_id": "x", "item_id": "i1"}).status_code == 200,
            "events",
        )


def test_a_killed_redis_of_ones_own_is_found_again(with_own: Any, own_redis: Any) -> None:
    asked = {"user_id": "found-again", "top_k": 5}
    with with_own.client() as client:
        client.post("/events", json={"user_id": "found-again", **SEQUENCE[0]})
        own_redis.kill()
        answer = client.post("/recall", json=asked).json()
        assert (answer["route"], answer["degraded"]) == ("popular", True)
        refused = client.post("/events", json={"user_id": "found-again", **SEQUENCE[1]})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        own_redis.start()
        eventually(lambda: client.post("/recall", json=asked).json()["degraded"] is False, "not restored")


def test_sigterm_answers_every_request_in_flight_and_exits_cleanly(serve: Any, slow_bundles: Path) -> None:
    served = serve(slow_bundles, max_batch=1, shutdown_delay_s=0.3, tower_engine="eager")

    async def scenario() -> tuple[list[httpx.Response], float]:
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
            asked = [{"user_id": f"u{n}", "sequence": SEQUENCE, "top_k": 10} for n in range(40)]
            tasks = [asyncio.create_task(client.post("/recall", json=request)) for request in asked]
            while served.metric("t2diff_queue_depth") < 20:
                await asyncio.sleep(0.01)
            asked_to_end = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            ready = await client.get("/v2/health/ready")
            while ready.status_code == 200:
                ready = await client.get("/v2/health/ready")
            assert ready.status_code == 503, "ready says no before the listener closes"
            assert (await client.get("/v2/health/live")).status_code == 200
            return list(await asyncio.gather(*tasks)), asked_to_end

    responses, asked_to_end = asyncio.run(scenario())
    assert [response.status_code for response in responses] == [200] * 40
    assert {response.json()["route"] for response in responses} == {"t2diff"}
    assert served.process.wait(15) == 0
    assert time.monotonic() - asked_to_end < 15
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port), timeout=1).close()


def test_half_open_connections_do_not_hold_up_the_end(serve: Any, tiny_bundles: Path) -> None:
    served = serve(tiny_bundles, shutdown_timeout_s=2, receive_timeout_s=600)
    pid = redis_pid_of(served)
    halves = [b"", b"POST /rec", b"POST /recall HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"]
    connections = [socket.create_connection(("127.0.0.1", served.port), timeout=5) for _ in halves]
    for connection, half in zip(connections, halves, strict=True):
        connection.sendall(half)
    time.sleep(0.2)
    assert served.stop(15) == 0
    for connection in connections:
        connection.close()
    command = Path(f"/proc/{pid}/cmdline")
    assert not command.exists() or command.read_bytes() == b"", "the embedded Redis still runs"


def test_a_spoilt_bundle_is_refused_while_the_old_one_keeps_serving(
    serve: Any, tiny_bundles: Path, copied: Any, build: Any
) -> None:
    folder = copied(tiny_bundles)
    store = Store(folder)
    served = serve(folder, reload_poll_s=0.2)
    first = served.bundle
    spoilt = build(store, 1, TINY)
    path = folder / spoilt / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (folder / "CURRENT").write_text(f"{spoilt}\n{first}\n")  # as a publisher without checks would
    eventually(lambda: served.metric("t2diff_reloads_total", outcome="refused") >= 1, "not refused")
    refused = httpx.post(f"{served.admin_url}/admin/reload")
    assert refused.status_code == 409
    assert "model.safetensors" in refused.json()["detail"]
    assert spoilt in served.log
    with served.client() as client:
        assert client.get("/v2/models/recall").json()["bundle"] == first
        assert client.post("/recall", json={"user_id": "u", "sequence": SEQUENCE}).json()["bundle"] == first
        sound = build(store, 2, TINY)
        store.publish(sound)
        eventually(lambda: client.get("/v2/models/recall").json()["bundle"] == sound, "not polled")


def test_swapping_bundles_while_requests_flow_mixes_no_answers(
    serve: Any, tiny_bundles: Path, copied: Any, build: Any
) -> None:
    """Every answer is one of its own bundle's: what that bundle says alone, under its own name."""
    folder = copied(tiny_bundles)
    store = Store(folder)
    served = serve(folder)
    bundles = [store.current(), build(store, 1, TINY), build(store, 2, TINY)]
    choice = random.Random(0)
    requests = [
        {
            "user_id": f"u{n}",
            "top_k": 10,
            "sequence": [{"item_id": f"i{choice.randint(1, 60)}", "timestamp": k} for k in range(5)],
        }
        for n in range(12)
    ]
    expected: dict[tuple[str, str], list[str]] = {}

    def reload_to(bundle: str) -> None:
        store.publish(bundle)
        answer = httpx.post(f"{served.admin_url}/admin/reload", timeout=60)
        assert answer.json()["bundle"] == bundle, answer.text

    def ids(answer: dict[str, Any]) -> list[str]:
        return [candidate["item_id"] for candidate in answer["candidates"]]

    with served.client() as client:
        for bundle in bundles:
            reload_to(bundle)
            for request in requests:
                expected[bundle, request["user_id"]] = ids(client.post("/recall", json=request).json())
    assert len({tuple(candidates) for candidates in expected.values()}) == len(expected)
    seen: dict[str, int] = dict.fromkeys(bundles, 0)
    swapping = True

    async def ask(client: httpx.AsyncClient) -> None:
        while swapping:
            request = choice.choice(requests)
            response = await client.post("/recall", json=request)
            assert response.status_code == 200
            answer = response.json()
            assert answer["route"] == "t2diff"
            assert ids(answer) == expected[answer["bundle"], request["user_id"]]
            seen[answer["bundle"]] += 1

    async def flow() -> None:
        nonlocal swapping
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as client:
            askers = [asyncio.create_task(ask(client)) for _ in range(8)]
            for number in range(6):
                await asyncio.to_thread(reload_to, bundles[number % 3])
            swapping = False
            await asyncio.gather(*askers)

    asyncio.run(flow())
    assert min(seen.values()) > 5, seen
    assert served.metric("t2diff_reloads_total", outcome="loaded") >= 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bundles", "{empty}"], r"bundles \(--bundles, T2DIFF_BUNDLES\): no bundle .*"),
        (
            ["--bundles", "{tiny}", "--signature-key", "{empty}/key"],
            r"bundles \(.*\): signature_key: cannot read .*",
        ),
        (["--bundles", "{tiny}", "--max-batch", "many"], r"max_batch \(--max-batch, T2DIFF_MAX_BATCH\): .*"),
        ([], r"bundles \(--bundles, T2DIFF_BUNDLES\): is required"),
    ],
)
def test_a_start_that_cannot_work_ends_with_one_line_and_exit_code_2(
    tiny_bundles: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    names = {"tiny": tiny_bundles, "empty": tmp_path}
    given = ["--port=0", "--admin-port=0", f"--state-dir={tmp_path / 'state'}"]
    given += [argument.format(**names) for argument in arguments]
    command = [sys.executable, "-m", "service.cli", *given]
    ended = forked.run(command, timeout=60)
    assert ended.returncode == 2
    assert ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert re.fullmatch(f"t2diff-serve: {message}", last), ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_names_every_setting() -> None:
    command = [sys.executable, "-m", "service.cli", "--help"]
    shown = forked.run(command, timeout=60)
    assert shown.returncode == 0
    for flag in ("--bundles", "--port", "--redis-url", "--max-batch", "--on-deadline"):
        assert flag in shown.stdout
