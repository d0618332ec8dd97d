"""The door: who may ask for what, how often, and what a refusal says; all before the body is read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from service.access import PUBLIC_NEEDS
from service.api_keys import ApiKey, new_key
from service.app import ADMIN_LABELS, PUBLIC_LABELS, create_admin_app
from service.callers import Callers
from service.console.routes import STATIC
from service.engine import Engine
from service.openapi import OPERATIONS

pytestmark = pytest.mark.anyio
PLACES = 288


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def with_keys(*kept: ApiKey, num_places: int = PLACES) -> Callers:
    return Callers(kept, num_places=num_places)


def assert_refused(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:t2diff:problem:{kind}"
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


async def ask(app: Any, path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, dict[bytes, bytes], Any]:
    """POST without a body that ever comes: asking for it fails the test."""

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


async def test_a_key_opens_what_its_scopes_say_and_nothing_else(start: Any) -> None:
    recall, recall_kept = new_key("ranker", ["recall"])
    events, events_kept = new_key("tracker", ["events"])
    client = (await start(with_keys(recall_kept, events_kept))).client
    asked, event = {"user_id": "u"}, {"user_id": "u", "item_id": "i3"}
    assert (await client.post("/recall", json=asked, headers=bearing(recall))).status_code == 200
    batch = {"requests": [asked]}
    assert (await client.post("/recall/batch", json=batch, headers=bearing(recall))).status_code == 200
    assert (await client.get("/v2/models/recall", headers=bearing(recall))).status_code == 200
    assert (await client.post("/events", json=event, headers=bearing(events))).status_code == 200
    refused = await client.post("/events", json=event, headers=bearing(recall))
    assert_refused(refused, 403, "forbidden")
    told = refused.headers["www-authenticate"]
    assert told == 'Bearer realm="t2diff", error="insufficient_scope", scope="events"'
    assert_refused(await client.post("/recall", json=asked, headers=bearing(events)), 403, "forbidden")


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ([], None),
        ([b"Bearer t2diff_0123456789ab_" + b"A" * 43], "invalid_token"),
        ([b"Bearer"], "invalid_request"),
        ([b"Bearer "], "invalid_token"),
        ([b""], "invalid_request"),
        ([b"Basic dTpw"], "invalid_request"),
        ([b"Bearer " + b"x" * 100_000], "invalid_token"),
        ([b"Bearer \xff\x00"], "invalid_token"),
        ([b"Bearer KEY", b"Bearer KEY"], "invalid_request"),
    ],
)
async def test_without_a_known_key_it_is_401_before_the_body_is_read(
    start: Any, headers: list[bytes], error: str | None
) -> None:
    key, kept = new_key("ranker", ["recall"])
    app = (await start(with_keys(kept))).app
    given = [(b"authorization", value.replace(b"KEY", key.encode())) for value in headers]
    for path in ("/recall", "/recall/batch", "/events"):
        status, answered, problem = await ask(app, path, given)
        assert (status, problem["type"]) == (401, "urn:t2diff:problem:unauthorized")
        told = answered[b"www-authenticate"].decode()
        assert told == 'Bearer realm="t2diff"' + (f', error="{error}"' if error else "")


async def test_the_scheme_is_read_in_any_case(start: Any) -> None:
    key, kept = new_key("ranker", ["recall"])
    client = (await start(with_keys(kept))).client
    for scheme in ("bearer", "BEARER", "Bearer "):
        headers = {"Authorization": f"{scheme} {key}"}
        assert (await client.get("/v2/models/recall", headers=headers)).status_code == 200


async def test_a_key_is_over_when_it_says_so(start: Any) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    key, kept = new_key("ranker", ["recall"], expires=soon)
    over = kept.model_copy(update={"expires": datetime.now(UTC) - timedelta(seconds=1)})
    callers = with_keys(kept)
    client = (await start(callers)).client
    assert (await client.get("/v2/models/recall", headers=bearing(key))).status_code == 200
    callers.use([over])
    refused = await client.get("/v2/models/recall", headers=bearing(key))
    assert "over" in assert_refused(refused, 401, "unauthorized")["detail"]


async def test_health_stays_open_and_every_other_path_is_closed(start: Any) -> None:
    """Also those that nobody has thought of: closed unless they are listed as open."""
    _, kept = new_key("ranker", ["recall"])
    client = (await start(with_keys(kept))).client
    for path in PUBLIC_LABELS:
        answer = await client.get(path)
        assert answer.status_code == (200 if path.startswith("/v2/health/") else 401), path
    for path in (
        "/",
        "/recall/",
        "//recall",
        "/Recall",
        "/docs/oauth2-redirect",
        "/v2/health/live/",
        "/nothing",
    ):
        assert (await client.get(path)).status_code == 401, path
    assert {path for path, need in PUBLIC_NEEDS.items() if need is None} == {
        "/v2/health/live",
        "/v2/health/ready",
    }
    assert {operation.path for operation in OPERATIONS.values()} == set(PUBLIC_NEEDS)


@pytest.mark.parametrize("open_metrics", [True, False])
async def test_the_admin_listener_takes_keys_of_its_own_scopes(start: Any, open_metrics: bool) -> None:
    keys = {scope: new_key(scope, [scope]) for scope in ("recall", "events", "admin", "metrics")}
    callers = with_keys(*(kept for _, kept in keys.values()))
    service = (await start()).service

    async def reload() -> dict[str, Any]:
        return {"outcome": "unchanged", "bundle": None}

    app = create_admin_app(service, reload, callers, open_metrics=open_metrics)
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:

        async def status(method: str, path: str, key: str | None) -> int:
            headers = {} if key is None else bearing(key)
            return (await client.request(method, path, headers=headers)).status_code

        for path in ADMIN_LABELS:
            opened = path in STATIC or (path == "/metrics" and open_metrics)  # the page holds no data
            expected = 200 if opened else 401
            assert await status("GET", path, None) == expected, path
        got = {scope: await status("GET", "/metrics", key) for scope, (key, _) in keys.items()}
        other = 200 if open_metrics else 403
        assert got == {"recall": other, "events": other, "admin": 200, "metrics": 200}
        got = {scope: await status("POST", "/admin/reload", key) for scope, (key, _) in keys.items()}
        assert got == {"recall": 403, "events": 403, "admin": 200, "metrics": 403}


async def test_beyond_its_rate_a_caller_gets_429_with_retry_after_before_the_body_is_read(start: Any) -> None:
    key, kept = new_key("ranker", ["recall", "events"], rate=0.25, burst=2)
    app = (await start(with_keys(kept))).app
    given = [(b"authorization", b"Bearer " + key.encode())]
    for _ in range(2):
        with pytest.raises(AssertionError, match="body"):
            await raised(app, given)
    for path in ("/recall", "/recall/batch", "/events"):
        status, headers, problem = await ask(app, path, given)
        assert (status, problem["type"]) == (429, "urn:t2diff:problem:over-rate")
        assert headers[b"retry-after"] in (b"3", b"4")


async def raised(app: Any, headers: list[tuple[bytes, bytes]]) -> None:
    """Ask /recall; raises what asking for the body raised: the request was let in."""
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked = True
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    await app({"type": "http", "method": "POST", "path": "/recall", "headers": headers}, receive, send)
    if asked:
        raise AssertionError("the body was asked for")


async def test_a_batch_counts_as_many_requests_as_it_has_members(start: Any) -> None:
    key, kept = new_key("ranker", ["recall"], rate=0.5, burst=10)
    client = (await start(with_keys(kept))).client
    batch = {"requests": [{"user_id": "u", "top_k": 1}] * 30}
    assert (await client.post("/recall/batch", json=batch, headers=bearing(key))).status_code == 200
    refused = await client.post("/recall", json={"user_id": "u"}, headers=bearing(key))
    assert_refused(refused, 429, "over-rate")
    assert 38 <= int(refused.headers["retry-after"]) <= 42, "it owes 20 requests at one in two seconds"


async def test_two_keys_of_one_caller_share_its_rate(start: Any) -> None:
    old, old_kept = new_key("ranker", ["recall"], rate=0.001, burst=100)
    new, new_kept = new_key("ranker", ["recall"], rate=0.001, burst=4)
    other, other_kept = new_key("tracker", ["recall"])
    client = (await start(with_keys(old_kept, new_kept, other_kept))).client
    keys = [old, new, old, new, old, new, other]
    got = [(await client.get("/v2/models/recall", headers=bearing(key))).status_code for key in keys]
    assert got == [200, 200, 200, 200, 429, 429, 200], "with the burst of the key made last"


async def test_a_rotation_takes_the_counts_along(start: Any) -> None:
    old, old_kept = new_key("ranker", ["recall"], rate=0.001, burst=3)
    new, new_kept = new_key("ranker", ["recall"], rate=0.001, burst=3)
    callers = with_keys(old_kept)
    client = (await start(callers)).client

    async def status(key: str) -> int:
        return (await client.get("/v2/models/recall", headers=bearing(key))).status_code

    assert [await status(old), await status(new)] == [200, 401]
    callers.use([old_kept, new_kept])
    assert [await status(old), await status(new)] == [200, 200]
    callers.use([new_kept])
    assert [await status(old), await status(new)] == [401, 429], "a new key is no new quota"
    (caller,) = callers
    assert (caller.outcomes["accepted"], caller.outcomes["over_rate"]) == (3, 1)


async def test_one_caller_cannot_take_every_place_and_another_always_finds_one(
    start: Any, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is slow; the greedy caller sends as much as it can, and the modest one is not refused."""
    greedy, greedy_kept = new_key("greedy", ["recall"])
    modest, modest_kept = new_key("modest", ["recall"])
    callers = with_keys(greedy_kept, modest_kept, num_places=24)
    running = await start(callers, max_queue=20, max_batch=4)
    answer = type(engine).recall

    def slowly(self: Engine, requests: Any) -> Any:
        time.sleep(0.02)
        return answer(self, requests)

    monkeypatch.setattr(Engine, "recall", slowly)
    body = {"user_id": "u", "top_k": 1, "sequence": [{"item_id": "i3"}]}
    most = 0

    async def send(key: str) -> int:
        nonlocal most
        response = await running.client.post("/recall", json=body, headers=bearing(key))
        most = max(most, *(caller.held for caller in callers))
        if response.status_code == 429:
            assert_refused(response, 429, "over-share")
            assert response.headers["retry-after"] == "1"
        return response.status_code

    flood = [asyncio.create_task(send(greedy)) for _ in range(100)]
    calm = []
    for _ in range(10):
        await asyncio.sleep(0.005)
        calm.append(await send(modest))
    flooded = await asyncio.gather(*flood)
    assert calm == [200] * 10
    assert set(flooded) == {200, 429}
    assert flooded.count(200) >= 12, "alone it may have half of the places"
    assert most <= 12
    assert [caller.held for caller in callers] == [0, 0]


async def test_members_of_a_batch_take_turns_and_leave_room_for_the_callers_other_recalls(start: Any) -> None:
    key, kept = new_key("ranker", ["recall"])
    callers = with_keys(kept, num_places=20)
    (caller,) = callers
    running = await start(callers)
    most = 0
    enter = running.service.recall

    async def watched(*asked: Any) -> Any:
        nonlocal most
        most = max(most, caller.held)
        await asyncio.sleep(0)
        return await enter(*asked)

    running.service.recall = watched
    batch = {"requests": [{"user_id": f"u{n}", "top_k": 1} for n in range(256)]}
    asking = asyncio.create_task(running.client.post("/recall/batch", json=batch, headers=bearing(key)))
    async with asyncio.timeout(20):
        while most < 5:
            await asyncio.sleep(0)
    single = await running.client.post("/recall", json={"user_id": "u"}, headers=bearing(key))
    assert single.status_code == 200
    members = (await asking).json()["responses"]
    assert [member["status"] for member in members] == [200] * 256
    assert [member["answer"]["user_id"] for member in members] == [f"u{n}" for n in range(256)]
    assert 5 <= most <= 6, "half of the ten that it may have, and the single one"
    assert caller.held == 0


async def test_a_member_of_a_batch_without_a_place_is_refused_alone(start: Any) -> None:
    greedy, modest = new_key("greedy", ["recall"]), new_key("modest", ["recall"])
    callers = with_keys(greedy[1], modest[1], num_places=4)
    holders = {caller.name: caller for caller in callers}
    running = await start(callers)
    for name in ("greedy", "greedy", "modest"):
        holders[name].enter()
    batch = {"requests": [{"user_id": "u", "top_k": 1}, {"user_id": 0.5}]}
    answered = await running.client.post("/recall/batch", json=batch, headers=bearing(greedy[0]))
    members = answered.json()["responses"]
    assert [member["status"] for member in members] == [429, 422]
    assert members[0]["problem"]["type"] == "urn:t2diff:problem:over-share"


async def test_a_place_is_given_back_whatever_becomes_of_the_request(start: Any) -> None:
    key, kept = new_key("ranker", ["recall"])
    callers = with_keys(kept)
    client = (await start(callers)).client
    for content in (b"{", b'{"user_id": 1.5}', b""):
        await client.post("/recall", content=content, headers=bearing(key))
    asking = asyncio.create_task(client.post("/recall", json={"user_id": "u"}, headers=bearing(key)))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    (caller,) = callers
    assert caller.held == 0


async def test_callers_and_their_outcomes_are_metrics_named_by_the_file_only(start: Any) -> None:
    key, kept = new_key("ranker", ["recall"], rate=0.001, burst=2)
    callers = with_keys(kept)
    running = await start(callers)
    running.service.metrics.callers.callers = callers
    for headers in (bearing(key), bearing(key), bearing(key), {}, bearing("made-up"), {"Authorization": "x"}):
        await running.client.get("/v2/models/recall", headers=headers)
    await running.client.post("/events", json={}, headers=bearing(key))
    text = running.service.metrics.exposition().decode()
    for line in (
        't2diff_caller_requests_total{caller="ranker",outcome="accepted"} 2.0',
        't2diff_caller_requests_total{caller="ranker",outcome="over_rate"} 1.0',
        't2diff_caller_requests_total{caller="ranker",outcome="out_of_scope"} 1.0',
        't2diff_caller_in_flight{caller="ranker"} 0.0',
        't2diff_unknown_callers_total{reason="missing"} 1.0',
        't2diff_unknown_callers_total{reason="unknown"} 1.0',
        't2diff_unknown_callers_total{reason="malformed"} 1.0',
    ):
        assert line in text
    assert "made-up" not in text
    assert key not in text
    callers.use([])
    assert "ranker" not in running.service.metrics.exposition().decode()


@pytest.mark.parametrize("length", [b"65537", b"9" * 30, b"-1"])
async def test_a_long_body_of_a_stranger_is_not_read_to_its_end(start: Any, length: bytes) -> None:
    _, kept = new_key("ranker", ["recall"])
    app = (await start(with_keys(kept))).app
    _, headers, _ = await ask(app, "/recall", [(b"content-length", length)])
    assert headers[b"connection"] == b"close"
    _, headers, _ = await ask(app, "/recall", [(b"content-length", b"65536")])
    assert b"connection" not in headers


async def test_the_document_asks_for_keys_where_they_are_needed(start: Any) -> None:
    key, kept = new_key("ranker", ["recall"])
    document = (await (await start(with_keys(kept))).client.get("/openapi.json", headers=bearing(key))).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for name, operation in OPERATIONS.items():
        described = document["paths"][operation.path][operation.method.lower()]
        if name in ("live", "ready"):
            assert "security" not in described
            continue
        assert described["security"] == [{"key": ["events" if name == "events" else "recall"]}]
        assert {"401", "403", "429"} <= set(described["responses"])
    plain = (await (await start()).client.get("/openapi.json")).json()
    assert "securitySchemes" not in plain["components"]
    assert "401" not in plain["paths"]["/recall"]["post"]["responses"]


async def test_without_keys_the_door_is_not_there(start: Any) -> None:
    with_door = await start(with_keys(new_key("c", ["recall"])[1]))
    without = await start()
    inside: Callable[[Any], str] = lambda running: type(running.app._app).__name__  # noqa: E731
    assert (inside(with_door), inside(without)) == ("AccessControl", "_RecallFirst")
