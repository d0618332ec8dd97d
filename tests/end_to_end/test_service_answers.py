"""A running service: its answers, its refusals, and what it tells about itself, over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.any_target
ITEMS = [f"i{n}" for n in range(1, 61)]


@pytest.fixture(scope="module")
def embedded(serve: Any, tiny_bundles: Any) -> Any:
    return serve(tiny_bundles, log_requests="all")


@pytest.fixture(scope="module", params=["embedded", "own"])
def served(request: pytest.FixtureRequest, serve: Any, tiny_bundles: Any) -> Any:
    """The service with the Redis that it brings and with one of the caller's."""
    if request.param == "embedded":
        return request.getfixturevalue("embedded")
    return serve(tiny_bundles, redis_url=request.getfixturevalue("own_redis").url)


def history_of(number: int) -> list[str]:
    return [ITEMS[(number * 7 + k) % 60] for k in range(5)]


def events_of(user: str, number: int) -> list[dict[str, Any]]:
    return [{"user_id": user, "item_id": item, "timestamp": k} for k, item in enumerate(history_of(number))]


def candidates_of(response: httpx.Response) -> list[str]:
    return [candidate["item_id"] for candidate in response.json()["candidates"]]


def test_it_says_where_it_listens_what_it_serves_and_which_redis(served: Any) -> None:
    for line in ("recall", "admin", "bundle", "device", "redis"):
        assert re.search(rf"^  {line} +\S", served.greeting, re.MULTILINE), served.greeting
    with served.client() as client:
        assert client.get("/v2/health/live").json() == {"status": "ok"}
        assert client.get("/v2/health/ready").json() == {"status": "ok"}
        assert client.get("/v2/models/recall").json()["bundle"] == served.bundle


def test_events_of_a_new_user_switch_the_route_from_popular_to_the_model(served: Any) -> None:
    with served.client() as client:
        asked = {"user_id": "newcomer", "top_k": 10}
        before = client.post("/recall", json=asked).json()
        assert (before["route"], before["reason"], before["degraded"]) == ("popular", "no_history", False)
        accepted = client.post("/events", json=events_of("newcomer", 1)).json()["accepted"]
        assert accepted == 5
        after = client.post("/recall", json=asked).json()
    assert (after["route"], after["degraded"]) == ("t2diff", False)
    assert len({candidate["item_id"] for candidate in after["candidates"]}) == 10
    assert not {candidate["item_id"] for candidate in after["candidates"]} & set(history_of(1))


def test_batched_recall_equals_single_recall(served: Any) -> None:
    with served.client() as client:
        for number in range(20):
            client.post("/events", json=events_of(f"batched{number}", number))
        asked = [{"user_id": f"batched{n}", "top_k": 5 + n} for n in range(20)]
        single = [client.post("/recall", json=request).json() for request in asked]
        members = client.post("/recall/batch", json={"requests": asked}).json()["responses"]
    for alone, member in zip(single, members, strict=True):
        together = member["answer"]
        assert together["route"] == alone["route"] == "t2diff"
        assert [c["item_id"] for c in together["candidates"]] == [c["item_id"] for c in alone["candidates"]]
        for left, right in zip(together["candidates"], alone["candidates"], strict=True):
            assert left["score"] == pytest.approx(right["score"], abs=1e-5)


def test_requests_whose_callers_hang_up_at_random_give_nobody_another_users_answer(served: Any) -> None:
    users = {f"fuzz{n}": n for n in range(30)}
    with served.client() as client:
        for user, number in users.items():
            client.post("/events", json=events_of(user, number))
        expected = {u: candidates_of(client.post("/recall", json={"user_id": u, "top_k": 8})) for u in users}
    assert len({tuple(candidates) for candidates in expected.values()}) == len(users)
    choice = random.Random(0)
    answered = hung_up = 0

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal answered
        user = choice.choice(list(users))
        request_id = f"{user}-{choice.random()}"
        response = await client.post(
            "/recall", json={"user_id": user, "top_k": 8}, headers={"X-Request-ID": request_id}
        )
        assert response.status_code == 200
        answer = response.json()
        assert answer["user_id"] == user
        assert answer["request_id"] == request_id
        assert answer["route"] == "t2diff"
        assert candidates_of(response) == expected[user]
        answered += 1

    async def fuzz() -> None:
        nonlocal hung_up
        limits = httpx.Limits(max_connections=24)
        async with httpx.AsyncClient(base_url=served.url, timeout=30, limits=limits) as client:
            for _ in range(25):
                tasks = [asyncio.create_task(ask(client)) for _ in range(20)]
                for task in choice.sample(tasks, 8):
                    asyncio.get_running_loop().call_later(choice.random() * 0.02, task.cancel)
                results = await asyncio.gather(*tasks, return_exceptions=True)
                hung_up += sum(isinstance(result, asyncio.CancelledError) for result in results)
                failures = [r for r in results if r and not isinstance(r, asyncio.CancelledError)]
                assert failures == []

    asyncio.run(fuzz())
    assert answered > 250
    assert hung_up > 20


REFUSALS = [
    ("POST", "/recall", b"{", "application/json", 400),
    ("POST", "/recall", b'{"user_id": "\\ud800"}', "application/json", 400),
    ("GET", "/nothing", b"", "application/json", 404),
    ("GET", "/recall", b"", "application/json", 405),
    ("DELETE", "/events", b"", "application/json", 405),
    ("POST", "/recall", b" " * 5_000_000, "application/json", 413),
    ("POST", "/recall", b'{"user_id": "u"}', "text/plain", 415),
    ("POST", "/recall", b"{}", "application/json", 422),
    ("POST", "/recall", b'{"user_id": NaN}', "application/json", 422),
    ("POST", "/recall", b'{"user_id": "u", "top_k": 1e400}', "application/json", 422),
    ("POST", "/recall", b'{"user_id": "u", "k": NaN}', "application/json", 422),
    ("POST", "/recall", b'{"user_id": true}', "application/json", 422),
    ("POST", "/events", b'{"user_id": "u"}', "application/json", 422),
    ("POST", "/recall/batch", b'{"requests": []}', "application/json", 422),
]


@pytest.mark.parametrize(("method", "path", "body", "media_type", "status"), REFUSALS)
def test_each_refusal_is_a_problem(
    embedded: Any, method: str, path: str, body: bytes, media_type: str, status: int
) -> None:
    with embedded.client() as client:
        response = client.request(method, path, content=body, headers={"Content-Type": media_type})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]


def test_a_huge_body_is_refused_while_it_is_still_being_sent(embedded: Any) -> None:
    """A gigabyte is announced and a few megabytes are sent: the answer does not wait for the rest."""
    with socket.create_connection(("127.0.0.1", embedded.port), timeout=20) as connection:
        head = b"POST /recall HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 1000000000\r\n\r\n" + b" " * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_hostile_framing_and_headers_get_4xx_or_a_closed_connection_and_hurt_nobody(embedded: Any) -> None:
    poisons = [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /recall HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /recall HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%00%ff%0d%0a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"POST /recall HTTP/1.1\r\nHost: x\r\nX-Request-ID: \xff\xfe\r\nX-Deadline-Ms: \xff\r\n"
        b"Content-Length: 2\r\nConnection: close\r\n\r\n{}",
    ]
    for poison in poisons:
        with socket.create_connection(("127.0.0.1", embedded.port), timeout=20) as connection:
            connection.sendall(poison)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100)
        assert answer == b"" or re.match(rb"HTTP/1\.1 4\d\d ", answer), (poison[:60], answer)
    with embedded.client() as client:
        assert client.post("/recall", json={"user_id": "u"}).status_code == 200


def test_metrics_and_admin_are_on_their_own_port(embedded: Any, one_process: None) -> None:
    with embedded.client() as client:
        client.post("/recall", json={"user_id": "u"})
        assert client.get("/metrics").status_code == 404
        assert client.post("/admin/reload").status_code == 404
    for stage in ("store", "total"):
        assert embedded.metric("t2diff_stage_seconds_count", stage=stage) > 0
    assert embedded.metric("t2diff_bundle_info", bundle=embedded.bundle) == 1
    assert embedded.metric("t2diff_ready") == 1
    assert embedded.metric("t2diff_responses_total", route="recall", status="200") > 0
    assert embedded.metric("t2diff_fallbacks_total", reason="no_history", degraded="false") > 0
    assert httpx.post(f"{embedded.admin_url}/admin/reload").json()["outcome"] == "unchanged"
    assert httpx.get(f"{embedded.admin_url}/recall").status_code == 404


def test_logs_are_json_lines_without_users_items_or_bodies(embedded: Any) -> None:
    secret = "canary-5ecret"
    with embedded.client() as client:
        client.post("/events", json={"user_id": secret, "item_id": secret})
        client.post("/recall", json={"user_id": secret, "exclude_item_ids": [secret]})
        client.post("/recall", json={"user_id": secret, "top_k": secret, secret: 1})
        client.post("/recall", content=secret)
        client.get(f"/{secret}?{secret}")
        last = client.post("/recall", json={"user_id": "u"}, headers={"X-Request-ID": "the-last-one"})
        assert last.status_code == 200
    give_up = time.monotonic() + 10
    while "the-last-one" not in embedded.log:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert secret not in embedded.log
    lines = [json.loads(line) for line in embedded.log.splitlines()]
    entry = next(line for line in lines if line.get("request_id") == "the-last-one")
    assert (entry["route"], entry["status"], entry["bundle"]) == ("recall", 200, embedded.bundle)
    assert entry["total_ms"] > 0
    assert entry["store_ms"] > 0


def test_generated_requests_find_no_error_of_the_service(embedded: Any, tmp_path: Path) -> None:
    """schemathesis, from the service's own OpenAPI document; a fixed deadline, for 1 ms is rightly a 504."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    schemathesis = [sys.executable, "-m", "schemathesis.cli", "run", f"{embedded.url}/openapi.json"]
    options = ["--checks", checks, "--max-examples", "15", "--seed", "1", "--no-color", "--no-shrink"]
    options += ["--phases", "examples,coverage,fuzzing", "--header", "X-Deadline-Ms: 20000"]
    run = subprocess.run([*schemathesis, *options], capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    generated = re.search(r"(\d+) generated", run.stdout)
    assert generated is not None, run.stdout[-2000:]
    assert int(generated[1]) > 100
