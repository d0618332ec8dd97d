"""A planted secret is looked for in everything that a running service says, whatever goes wrong meanwhile."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from loadtest.stress.redis_process import RedisProcess

SECRET = "canary5ecret"
HEADERS = {
    "Authorization": f"Bearer {SECRET}",
    "X-API-Key": SECRET,
    "Cookie": f"session={SECRET}",
    "X-Deadline-Ms": SECRET,
    "X-Experiment-Arm": SECRET,
}
EVENTS = [{"user_id": SECRET, "item_id": item, "timestamp": n} for n, item in enumerate(["i1", SECRET])]
ASKED = {"user_id": SECRET, "top_k": 3, "exclude_item_ids": [SECRET]}


def knowing(server: RedisProcess) -> redis.Redis:
    """A client that may do anything there."""
    return redis.Redis(port=server.port, username=SECRET, password=SECRET)


@pytest.fixture(scope="module")
def password_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A redis-server that wants the secret as its password."""
    entrance = ["--requirepass", SECRET, "--user", SECRET, "on", f">{SECRET}", "~*", "+@all"]
    with RedisProcess(tmp_path_factory.mktemp("redis"), *entrance) as server:
        yield server


@pytest.fixture(scope="module")
def talkative(serve: Any, tiny_bundles: Path, password_redis: RedisProcess) -> Any:
    """Everything is logged that can be."""
    return serve(
        tiny_bundles,
        redis_url=f"redis://{SECRET}:{SECRET}@127.0.0.1:{password_redis.port}/0",
        log_level="debug",
        log_requests="all",
        header_timeout_s=0.5,
        receive_timeout_s=0.5,
        redis_read_timeout_ms=200,
        redis_write_timeout_ms=200,
        breaker_cooldown_ms=100,
    )


def ask(served: Any) -> int:
    """Good and bad requests with the secret in every place that the service reads or ignores.

    Returns the status of the good events.
    """
    good = {name: value for name, value in HEADERS.items() if not name.startswith(("X-D", "X-E"))}
    with served.client() as client:
        stored = client.post("/events", json=EVENTS, headers=good)
        client.post("/recall", json=ASKED, headers=good)
        client.post("/recall/batch", json={"requests": [ASKED, {SECRET: SECRET}]}, headers=good)
        for name, value in HEADERS.items():
            client.post("/recall", json=ASKED, headers={name: value})
        client.post("/recall", json={**ASKED, "top_k": SECRET, SECRET: 1})
        client.post("/recall", json={**ASKED, "sequence": [{"item_id": SECRET, "timestamp": SECRET}]})
        client.post("/recall", content=SECRET)
        client.post("/recall", content=SECRET, headers={"Content-Type": f"text/{SECRET}"})
        client.request("PATCH", f"/{SECRET}?{SECRET}={SECRET}")
    return stored.status_code


def send_raw(served: Any) -> None:
    head = f"POST /recall?{SECRET} HTTP/1.1\r\nAuthorization: {SECRET}\r\n"
    for raw in (
        f"{SECRET}\r\n\r\n",
        head,
        f"{head}Content-Length: x{SECRET}\r\n\r\n",
        f"{head}Content-Length: 1000\r\n\r\n{SECRET}",
        f"{head}Transfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
        f"{head}Connection: Upgrade\r\nUpgrade: {SECRET}\r\n\r\n{SECRET}",
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            connection.sendall(raw.encode())
            connection.recv(4096)


def no_failure(served: Any, server: RedisProcess) -> None:
    assert ask(served) == 200


def stopped_redis(served: Any, server: RedisProcess) -> None:
    server.stop()
    assert ask(served) == 503
    server.go_on()


def hostile_redis(served: Any, server: RedisProcess) -> None:
    with knowing(server) as client:
        client.set(f"t2diff:seq1:{SECRET}", f"{SECRET}-other\n{SECRET}\n{SECRET}\n")
        ask(served)
        client.delete(f"t2diff:seq1:{SECRET}")
        client.rpush(f"t2diff:seq1:{SECRET}", SECRET)
        ask(served)


def refused_by_redis(served: Any, server: RedisProcess) -> None:
    """It forgets the password's user: every command and every new connection is refused."""
    with redis.Redis(port=server.port, password=SECRET) as client:
        client.execute_command("ACL", "SETUSER", SECRET, "off")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert ask(served) == 503
        client.execute_command("ACL", "SETUSER", SECRET, "on")


def dead_redis(served: Any, server: RedisProcess) -> None:
    server.kill()
    assert ask(served) == 503


FAILURES: dict[str, Callable[[Any, RedisProcess], None]] = {
    "none": no_failure,
    "broken HTTP": lambda served, server: send_raw(served),
    "Redis stopped": stopped_redis,
    "hostile values": hostile_redis,
    "Redis refuses": refused_by_redis,
    "Redis dead": dead_redis,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_planted_secret_is_in_no_output(talkative: Any, password_redis: RedisProcess, failure: str) -> None:
    FAILURES[failure](talkative, password_redis)
    with talkative.client() as client:
        client.get("/v2/health/live", headers={"X-Request-ID": f"after-{failure.replace(' ', '-')}"})
        seen = client.get("/v2/models/recall").text
    give_up = time.monotonic() + 20
    while f"after-{failure.replace(' ', '-')}" not in talkative.log:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    seen += httpx.get(f"{talkative.admin_url}/metrics").text
    for said in (talkative.log, talkative.greeting, seen):
        assert SECRET not in said, said[max(0, said.index(SECRET) - 300) : said.index(SECRET) + 100]


def test_what_was_looked_through_is_json_and_not_empty(talkative: Any) -> None:
    """Runs last: the outputs above held the requests and the failures."""
    ask(talkative)
    assert talkative.stop() == 0
    lines = [json.loads(line) for line in talkative.log.splitlines()]
    assert len(lines) > 20
    assert {"recall", "events", "recall_batch", "other"} <= {line.get("route") for line in lines}
    assert re.search("store|redis", talkative.log, re.IGNORECASE)
    assert SECRET not in talkative.log
