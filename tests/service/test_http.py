"""The HTTP contract: every status, every answer's shape, the headers."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import httpx
import pytest

from service.engine import Engine
from service.middleware import RequestMiddleware

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]


def assert_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["type"] == f"urn:t2diff:problem:{kind}"
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "total;dur=" in response.headers["server-timing"]
    return problem


async def test_a_user_without_history_gets_the_popular_items(start: Any) -> None:
    client = (await start()).client
    response = await client.post("/recall", json={"user_id": "nobody", "top_k": 5})
    assert response.status_code == 200
    answer = response.json()
    assert answer["route"] == "popular"
    assert answer["reason"] == "no_history"
    assert answer["degraded"] is False
    assert [c["item_id"] for c in answer["candidates"]] == ["i20", "i19", "i18", "i17", "i16"]
    assert "shortfall" not in answer


async def test_events_of_a_new_user_switch_the_route_to_the_model(start: Any) -> None:
    running = await start()
    client = running.client
    before = await client.post("/recall", json={"user_id": 42, "top_k": 10})
    events = [{"user_id": "42", **behaviour} for behaviour in SEQUENCE]
    assert (await client.post("/events", json=events[0])).json()["accepted"] == 1
    assert (await client.post("/events", json=events[1:])).json()["accepted"] == 2
    after = await client.post("/recall", json={"user_id": 42, "top_k": 10})
    assert (before.json()["route"], after.json()["route"]) == ("popular", "t2diff")
    answer = after.json()
    assert answer["user_id"] == "42"
    assert answer["bundle"] == running.service.engine.bundle.bundle_id
    scores = [c["score"] for c in answer["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert len({c["item_id"] for c in answer["candidates"]}) == 10
    assert not {"i3", "i7", "i9"} & {c["item_id"] for c in answer["candidates"]}
    given = await client.post("/recall", json={"user_id": "42", "top_k": 10, "sequence": SEQUENCE})
    assert given.json()["candidates"] == answer["candidates"]


async def test_server_timing_names_every_stage(start: Any) -> None:
    client = (await start()).client
    await client.post("/events", json={"user_id": "u", "item_id": "i3"})
    response = await client.post("/recall", json={"user_id": "u"})
    number = r"\d+\.\d+"
    stages = ", ".join(f"{stage};dur={number}" for stage in ("store", "queue", "tower", "search", "total"))
    assert re.fullmatch(stages + r', batch;desc="1"', response.headers["server-timing"])


async def test_a_request_id_is_echoed_when_it_is_sane_and_made_when_not(start: Any) -> None:
    client = (await start()).client
    for given, echoed in [("abc-123", True), ("x" * 129, False), ("two words", False), (None, False)]:
        headers = {} if given is None else {"X-Request-ID": given}
        response = await client.post("/recall", json={"user_id": "u"}, headers=headers)
        got = response.headers["x-request-id"]
        assert response.json()["request_id"] == got
        assert (got == given) is echoed
        assert re.fullmatch(r"[!-~]{1,128}", got)


async def test_made_request_ids_are_all_different(start: Any) -> None:
    client = (await start()).client
    made = [(await client.get("/v2/health/live")).headers["x-request-id"] for _ in range(600)]
    assert len(set(made)) == 600
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in made)


async def test_400_for_a_body_that_is_not_json(start: Any) -> None:
    client = (await start()).client
    for path in ("/recall", "/recall/batch", "/events"):
        assert_problem(await client.post(path, content=b"{", headers=JSON), 400, "invalid-json")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "600001", "9" * 30, "", "١"])
async def test_400_for_a_malformed_deadline(start: Any, value: str) -> None:
    client = (await start()).client
    headers = {"X-Deadline-Ms": value.encode()}
    problem = assert_problem(
        await client.post("/recall", json={"user_id": "u"}, headers=headers), 400, "invalid-header"
    )
    assert "X-Deadline-Ms" in problem["detail"]


async def test_404_and_405_are_problems_too(start: Any) -> None:
    client = (await start()).client
    assert_problem(await client.get("/nothing"), 404, "not-found")
    response = await client.get("/recall")
    assert_problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


async def test_408_for_a_body_that_does_not_arrive(start: Any) -> None:
    client = (await start(receive_timeout_s=0.05)).client

    async def slowly() -> Any:
        yield b'{"user_id":'
        await asyncio.sleep(5)
        yield b'"u"}'

    assert_problem(await client.post("/recall", content=slowly(), headers=JSON), 408, "receive-timeout")


async def test_a_body_that_arrives_in_parts_is_read_whole(start: Any) -> None:
    client = (await start(receive_timeout_s=20)).client

    async def slowly() -> Any:
        for part in (b'{"user', b'_id":', b'"somebody"}'):
            yield part
            await asyncio.sleep(0.02)

    response = await client.post("/recall", content=slowly(), headers=JSON)
    assert response.status_code == 200
    assert response.json()["user_id"] == "somebody"


@pytest.mark.parametrize("path", ["/recall", "/recall/batch", "/events"])
async def test_413_for_a_body_over_the_limit_declared_or_not(start: Any, path: str) -> None:
    client = (await start(max_body_bytes=2000)).client
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    assert_problem(await client.post(path, content=b" " * 2001, headers=JSON), 413, "body-too-large")
    assert_problem(await client.post(path, content=endless(), headers=JSON), 413, "body-too-large")
    assert sent <= 4000
    response = await client.post("/recall", content=b'{"user_id":"u"}'.ljust(2000), headers=JSON)
    assert response.status_code == 200


async def test_415_for_another_media_type(start: Any) -> None:
    client = (await start()).client
    body = b'{"user_id":"u"}'
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        response = await client.post("/recall", content=body, headers={"Content-Type": media_type})
        assert_problem(response, 415, "unsupported-media-type")
    for media_type in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"):
        response = await client.post("/recall", content=body, headers={"Content-Type": media_type})
        assert response.status_code == 200


async def test_422_names_the_field_the_value_and_the_remedy(start: Any) -> None:
    client = (await start()).client
    response = await client.post("/recall", json={"user_id": "u", "top_k": 5000})
    problem = assert_problem(response, 422, "invalid-fields")
    assert problem["errors"] == [
        {
            "field": "top_k",
            "value": "5000",
            "problem": "must be less than or equal to 1000",
            "remedy": "send a value within these bounds",
        }
    ]
    for body in (b'{"user_id": "u", "k": NaN}', b'{"user_id": NaN}', b'{"user_id": "u", "top_k": 1e400}'):
        assert_problem(await client.post("/recall", content=body, headers=JSON), 422, "invalid-fields")


async def test_422_for_an_event_of_the_far_future(start: Any) -> None:
    client = (await start()).client
    tomorrow_and_more = int(time.time()) + 2 * 86_400
    events = [
        {"user_id": "u", "item_id": "i1"},
        {"user_id": "u", "item_id": "i1", "timestamp": tomorrow_and_more},
    ]
    problem = assert_problem(await client.post("/events", json=events), 422, "invalid-fields")
    assert problem["errors"][0]["field"] == "1.timestamp"
    assert (await client.post("/recall", json={"user_id": "u"})).json()["route"] == "popular"


async def test_429_with_retry_after_when_the_queue_is_full(start: Any) -> None:
    running = await start(max_queue=2, max_batch=1)
    body = {"user_id": "u", "sequence": SEQUENCE}
    responses = await asyncio.gather(*(running.client.post("/recall", json=body) for _ in range(40)))
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429}
    refused = responses[statuses.index(429)]
    assert_problem(refused, 429, "queue-full")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await running.client.post("/recall", json=body)).status_code == 200


async def test_503_while_shutting_down_and_ready_says_so_but_live_does_not(start: Any) -> None:
    running = await start()
    client = running.client
    assert (await client.get("/v2/health/ready")).json() == {"status": "ok"}
    running.service.draining = True
    assert_problem(await client.get("/v2/health/ready"), 503, "shutting-down")
    assert (await client.get("/v2/health/live")).status_code == 200


async def test_503_without_a_bundle(start: Any) -> None:
    running = await start()
    running.service._engine = None
    for response in (
        await running.client.post("/recall", json={"user_id": "u"}),
        await running.client.get("/v2/health/ready"),
        await running.client.get("/v2/models/recall"),
    ):
        assert_problem(response, 503, "no-bundle")


async def test_503_for_events_when_redis_is_away_and_recall_answers_degraded(start: Any) -> None:
    running = await start(redis_url="redis://127.0.0.1:1/0")
    response = await running.client.post("/events", json={"user_id": "u", "item_id": "i1"})
    assert_problem(response, 503, "store-unavailable")
    assert int(response.headers["retry-after"]) >= 1
    response = await running.client.post(
        "/recall", json={"user_id": "u", "top_k": 5, "exclude_item_ids": ["i20"]}
    )
    assert response.status_code == 200
    answer = response.json()
    assert (answer["route"], answer["degraded"], answer["reason"]) == ("popular", True, "store_connection")
    assert [c["item_id"] for c in answer["candidates"]] == ["i19", "i18", "i17", "i16", "i15"]
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert (await running.client.get(path)).status_code == 200


async def test_504_past_the_deadline_when_errors_are_asked_for_else_the_fallback(start: Any) -> None:
    """A held-up device: the deadline passes while the request is queued."""
    for on_deadline in ("error", "fallback"):
        running = await start(on_deadline=on_deadline)
        blocker = asyncio.create_task(running.service._batcher.call(lambda: time.sleep(0.4)))
        await asyncio.sleep(0.01)
        response = await running.client.post(
            "/recall", json={"user_id": "u", "sequence": SEQUENCE}, headers={"X-Deadline-Ms": "50"}
        )
        assert not blocker.done(), "the answer waited for the device"
        if on_deadline == "error":
            assert_problem(response, 504, "deadline-exceeded")
        else:
            answer = response.json()
            assert (answer["route"], answer["degraded"], answer["reason"]) == ("popular", True, "deadline")
            assert len(answer["candidates"]) == 60 - len(SEQUENCE)
        await blocker


async def test_a_wedged_device_fails_liveness_while_requests_get_the_fallback(start: Any) -> None:
    class Stuck(Engine):
        def recall(self, requests: Any) -> Any:
            time.sleep(0.5)
            return super().recall(requests)

    running = await start(wedge_timeout_s=0.05)
    running.service.swap(Stuck(running.service.engine.bundle, device="cpu"))
    body = {"user_id": "u", "sequence": SEQUENCE}
    blocker = asyncio.create_task(running.client.post("/recall", json=body))
    await asyncio.sleep(0.2)
    assert_problem(await running.client.get("/v2/health/live"), 503, "wedged")
    response = await running.client.post(
        "/recall", json={"user_id": "u", "sequence": SEQUENCE}, headers={"X-Deadline-Ms": "20"}
    )
    assert response.json()["route"] == "popular"
    assert (await blocker).json()["route"] == "t2diff"
    assert (await running.client.get("/v2/health/live")).status_code == 200


async def test_a_batch_answers_or_refuses_each_on_its_own_and_equals_single_requests(start: Any) -> None:
    client = (await start()).client
    for user in range(10):
        events = [
            {"user_id": user, "item_id": f"i{1 + (user * 7 + n) % 60}", "timestamp": n} for n in range(user)
        ]
        if events:
            await client.post("/events", json=events)
    asked: list[Any] = [{"user_id": user, "top_k": 7, "seed": user} for user in range(10)]
    asked.insert(3, {"user_id": True})
    asked.insert(5, {"user_id": "u", "top_k": 0})
    response = await client.post("/recall/batch", json={"requests": asked})
    assert response.status_code == 200
    members = response.json()["responses"]
    assert [member["status"] for member in members] == [200, 200, 200, 422, 200, 422, *[200] * 6]
    assert members[3]["problem"]["errors"][0]["field"] == "user_id"
    for request, member in zip(asked, members, strict=True):
        if member["status"] == 200:
            single = (await client.post("/recall", json=request)).json()
            assert member["answer"]["route"] == single["route"]
            assert_same_candidates(member["answer"]["candidates"], single["candidates"])
    assert {member["answer"]["route"] for member in members if member["status"] == 200} == {
        "popular",
        "t2diff",
    }


def assert_same_candidates(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    assert [c["item_id"] for c in left] == [c["item_id"] for c in right]
    for one, other in zip(left, right, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


async def test_a_member_of_a_batch_is_refused_alone_when_the_queue_is_full(start: Any) -> None:
    running = await start(max_queue=3, max_batch=1)
    asked = [{"user_id": f"u{n}", "sequence": SEQUENCE} for n in range(50)]
    members = (await running.client.post("/recall/batch", json={"requests": asked})).json()["responses"]
    assert {member["status"] for member in members} == {200, 429}
    for request, member in zip(asked, members, strict=True):
        if member["status"] == 200:
            assert member["answer"]["user_id"] == request["user_id"]


async def test_the_model_is_described(start: Any) -> None:
    running = await start()
    info = (await running.client.get("/v2/models/recall")).json()
    assert info["bundle"] == running.service.engine.bundle.bundle_id
    assert (info["model"], info["device"], info["num_items"]) == ("t2diff", "cpu", 60)
    assert info["index"]["kind"] == "flat"
    assert info["metrics"] == {"validation/recall_at_20": 0.1}


async def test_the_openapi_document_refers_to_schemas_that_it_has(start: Any) -> None:
    client = (await start()).client
    document = (await client.get("/openapi.json")).json()
    text = (await client.get("/openapi.json")).text
    for name in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert name in document["components"]["schemas"]
    for path in ("/recall", "/recall/batch", "/events"):
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"]
        assert "HTTPValidationError" not in str(operation)
    assert (await client.get("/docs")).status_code == 200


async def test_an_unexpected_exception_is_a_500_problem_without_its_text(start: Any) -> None:
    running = await start()

    async def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    running.service.recall = broken
    response = await running.client.post("/recall", json={"user_id": "u"})
    assert_problem(response, 500, "internal")
    assert "secret" not in response.text


async def test_an_exception_below_the_framework_is_a_500_problem_too(start: Any) -> None:
    running = await start()

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("secret detail")

    app = RequestMiddleware(broken, metrics=running.service.metrics, routes={})
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        response = await client.get("/")
    assert_problem(response, 500, "internal")
    assert "secret" not in response.text
