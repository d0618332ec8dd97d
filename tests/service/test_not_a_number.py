"""NaN, infinity and padding, wherever they come from, never reach an answer."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import redis.asyncio
import torch

from index_builder.ann import AnnIndex
from index_builder.bundle import BundleError
from model.batch import PaddedSequences
from model.engines.interface import EagerTower
from service.engine import Engine

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]


def refuse(constant: str) -> float:
    """What `json.loads` calls for NaN and the infinities, which JSON does not know."""
    raise AssertionError(f"{constant} in an answer")


def checked(response: httpx.Response) -> dict[str, Any]:
    """The answer, every number in it a number, every item one of the catalogue's and there once."""
    answer: dict[str, Any] = json.loads(response.text, parse_constant=refuse)
    items = [candidate["item_id"] for candidate in answer["candidates"]]
    assert len(set(items)) == len(items)
    assert set(items) <= {f"i{n}" for n in range(1, 61)}
    assert all(math.isfinite(candidate["score"]) for candidate in answer["candidates"])
    return answer


async def ask(running: Any, **fields: Any) -> dict[str, Any]:
    response = await running.client.post("/recall", json={"user_id": "u", "sequence": SEQUENCE, **fields})
    assert response.status_code == 200, response.text
    return checked(response)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("share", [1.0, 0.01])
async def test_in_the_weights(start: Any, engine: Engine, value: float, share: float) -> None:
    """Such a bundle is refused by its canary; were it served nevertheless, the popular items answer."""
    broken = copy.deepcopy(engine.bundle.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter[torch.rand_like(parameter) < share] = value
    running = await start()
    served = Engine(dataclasses.replace(engine.bundle, model=broken), device="cpu")
    with pytest.raises((BundleError, ValueError)):
        served.warm_up(1)
    running.service.swap(served)
    answer = await ask(running, top_k=20)
    assert (answer["route"], answer["reason"], answer["degraded"]) == ("popular", "model", True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_in_one_users_embedding_fails_that_user_alone(start: Any, engine: Engine, value: float) -> None:
    class Poisoned(EagerTower):
        def embed(self, padded: PaddedSequences, keys: Sequence[int]) -> np.ndarray:
            routes = super().embed(padded, keys)
            routes[(padded.item_index == 5).any(axis=1), :, 0] = value
            return routes

    running = await start()
    running.service.swap(Engine(engine.bundle, device="cpu", tower=Poisoned(engine.bundle.model)))
    requests: list[Any] = [{"user_id": f"u{n}", "sequence": SEQUENCE} for n in range(8)]
    requests[3]["sequence"] = [{"item_id": "i5"}]
    blocker = asyncio.create_task(running.service._batcher.call(lambda: asyncio.run(asyncio.sleep(0.1))))
    response = await running.client.post("/recall/batch", json={"requests": requests})
    await blocker
    answers = [member["answer"] for member in response.json()["responses"]]
    assert [answer["route"] for answer in answers] == ["t2diff"] * 3 + ["popular"] + ["t2diff"] * 4
    assert answers[3]["reason"] == "model"
    assert "NaN" not in response.text
    alone = await ask(running, user_id="u0", sequence=[{"item_id": "i5"}])
    assert (alone["route"], alone["reason"]) == ("popular", "model")


class Says:
    """An index that answers what the test says."""

    def __init__(self, index: AnnIndex, scores: list[float], rows: list[int]) -> None:
        self._index, self._scores, self._rows = index, scores, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def within(self, timeout_s: float, until: float) -> Says:
        return self

    def search(self, queries: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        scores = np.tile(np.array(self._scores, np.float32), (len(queries), 1))
        return scores, np.tile(np.array(self._rows, np.int64), (len(queries), 1))


@pytest.mark.parametrize(
    ("scores", "rows", "items"),
    [
        ([3, 2, 1], [4, 9, 7], ["i5", "i10", "i8"]),
        ([3, 2, -math.inf], [4, 9, -1], ["i5", "i10"]),
        ([-math.inf, -math.inf, -math.inf], [-1, -1, -1], []),
        ([3, math.nan, 1], [4, 9, 7], None),
        ([math.inf, 2, 1], [4, 9, 7], None),
        ([3, 2, -math.inf], [4, 9, 7], None),
        ([3, -math.inf, 1], [4, -1, 7], None),
        ([3, 2, 1], [4, 9, -1], None),
    ],
)
async def test_in_what_the_index_gives(
    start: Any, engine: Engine, scores: list[float], rows: list[int], items: list[str] | None
) -> None:
    """items: of the answer; None: the popular ones. Padding (-1) must stand last and have no score."""
    running = await start()
    index: Any = Says(engine.bundle.index, scores, rows)
    running.service.swap(Engine(dataclasses.replace(engine.bundle, index=index), device="cpu"))
    answer = await ask(running, top_k=3)
    if items is None:
        assert (answer["route"], answer["reason"]) == ("popular", "model")
        assert len(answer["candidates"]) == 3
    else:
        assert answer["route"] == "t2diff"
        assert [candidate["item_id"] for candidate in answer["candidates"]] == items


async def test_padding_of_a_real_index_is_a_stated_shortfall(start: Any) -> None:
    running = await start()
    answer = await ask(running, top_k=100)
    assert len(answer["candidates"]) == 57
    assert answer["shortfall"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
async def test_in_a_request(start: Any, number: str) -> None:
    client = (await start()).client
    for body in (
        '{"user_id": "u", "top_k": %s}',
        '{"user_id": "u", "seed": %s}',
        '{"user_id": %s}',
        '{"user_id": "u", "sequence": [{"item_id": "i1", "timestamp": %s}]}',
    ):
        response = await client.post("/recall", content=body % number, headers=JSON)
        assert response.status_code in (400, 422)
        json.loads(response.text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "route"),
    [
        ("u\n9007199254740991\ni3\n9007199254740991\ni7\n", "t2diff"),
        ("u\n0\ni3\n0\ni7\n", "t2diff"),
        ("u\n0\ni3\n9007199254740991\ni7\n", "t2diff"),
        ("u\nnan\ni3\n", "popular"),
        ("u\ninf\ni3\n", "popular"),
        ("u\n1e300\ni3\n", "popular"),
        ("u\n-1\ni3\n", "popular"),
        ("u\n" + "9" * 400 + "\ni3\n", "popular"),
    ],
)
async def test_in_redis(start: Any, redis_on_a_port: str, value: str, route: str) -> None:
    running = await start()
    namespace = running.service.settings.redis_namespace
    async with redis.asyncio.from_url(redis_on_a_port) as client:
        await client.set(f"{namespace}:seq1:u", value)
        answer = await ask(running, sequence=None)
        await client.delete(f"{namespace}:seq1:u")
    assert answer["route"] == route
    assert len(answer["candidates"]) >= 50
