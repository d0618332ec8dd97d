"""The use case: whose items are left out, what happens to unknown ones, who answers when something fails."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
from types import FrameType
from typing import Any

import pytest

from service.deadline import Deadline
from service.engine import Engine
from service.errors import ServiceError
from service.packed_sequence import StoredSequence
from service.schemas import RecallRequest

pytestmark = pytest.mark.anyio
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]


async def ask(running: Any, **fields: Any) -> dict[str, Any]:
    response = await running.client.post("/recall", json={"user_id": "u", **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ids(answer: dict[str, Any]) -> list[str]:
    return [candidate["item_id"] for candidate in answer["candidates"]]


@pytest.mark.parametrize("known", [True, False])
async def test_excluded_and_seen_items_never_come_back_and_the_rest_moves_up(start: Any, known: bool) -> None:
    running = await start()
    sequence = SEQUENCE if known else []
    everything = ids(await ask(running, top_k=60, sequence=sequence, exclude_seen=False))
    assert len(everything) == 60
    unwanted = everything[:20:2]
    answer = await ask(running, top_k=20, sequence=sequence, exclude_item_ids=[*unwanted, "unknown"])
    seen = {b["item_id"] for b in sequence}
    assert ids(answer) == [item for item in everything if item not in {*unwanted, *seen}][:20]


async def test_seen_items_come_back_when_asked_for(start: Any) -> None:
    running = await start()
    assert {"i3", "i7", "i9"} <= set(ids(await ask(running, top_k=60, sequence=SEQUENCE, exclude_seen=False)))
    assert not {"i3", "i7", "i9"} & set(ids(await ask(running, top_k=60, sequence=SEQUENCE)))


@pytest.mark.parametrize("sequence", [SEQUENCE, []])
async def test_a_catalogue_that_cannot_fill_the_answer_says_so(start: Any, sequence: list[Any]) -> None:
    running = await start()
    answer = await ask(running, top_k=100, sequence=sequence)
    left = 60 - len(sequence)
    assert len(ids(answer)) == len(set(ids(answer))) == left
    assert answer["shortfall"] == f"the catalogue has 60 items, of which {left} are not excluded"
    excluded = [f"i{n}" for n in range(1, 61)]
    answer = await ask(running, top_k=5, sequence=sequence, exclude_item_ids=excluded)
    assert answer["candidates"] == []
    assert answer["shortfall"] == "the catalogue has 60 items, of which 0 are not excluded"


async def test_unknown_items_are_skipped_and_only_unknown_ones_fall_back(start: Any) -> None:
    running = await start()
    known = await ask(running, top_k=10, sequence=SEQUENCE)
    mixed = [{"item_id": "gone", "timestamp": 1}, *SEQUENCE, {"item_id": "new", "timestamp": 1_700_000_000}]
    assert ids(await ask(running, top_k=10, sequence=mixed)) == ids(known)
    unknown = await ask(running, sequence=[{"item_id": "gone", "timestamp": 1}])
    assert (unknown["route"], unknown["reason"], unknown["degraded"]) == ("popular", "unknown_items", False)


async def test_a_behaviour_keeps_its_time_when_unknown_items_leave_the_sequence(start: Any) -> None:
    service = (await start()).service
    behaviours = StoredSequence(["gone", "i3", "new", "i7"], [1, 20, 300, 4000])
    known, sequence = service.known_sequence(service.engine, behaviours)
    index_of = service.engine.bundle.item_index_of
    assert known.tolist() == sequence.item_index.tolist() == [index_of["i3"], index_of["i7"]]
    assert sequence.timestamp.tolist() == [20, 4000]


async def test_a_given_sequence_is_ordered_by_time_as_the_stored_one_is(start: Any) -> None:
    running = await start()
    in_order = await ask(running, top_k=10, sequence=SEQUENCE)
    assert ids(await ask(running, top_k=10, sequence=SEQUENCE[::-1])) == ids(in_order)
    without_times = [{"item_id": b["item_id"]} for b in SEQUENCE]
    assert (await ask(running, top_k=10, sequence=without_times))["route"] == "t2diff"


async def test_equal_seeds_give_equal_answers_and_other_seeds_other_scores(start: Any) -> None:
    running = await start()
    first, again, other = [await ask(running, sequence=SEQUENCE, seed=seed) for seed in (1, 1, 2)]
    assert first["candidates"] == again["candidates"]
    assert first["candidates"] != other["candidates"]


async def test_batched_recall_equals_single_recall(start: Any) -> None:
    """Sequences of every length and every top_k share batches; each answer is as if it were alone."""
    running = await start(max_batch=16)
    choice = random.Random(0)
    asked = [
        {
            "user_id": f"u{n}",
            "top_k": choice.choice([1, 5, 30, 60]),
            "seed": n,
            "sequence": [
                {"item_id": f"i{choice.randint(1, 60)}", "timestamp": 1_600_000_000 + 1000 * k}
                for k in range(choice.randint(1, 12))
            ],
            "exclude_item_ids": [f"i{choice.randint(1, 60)}" for _ in range(choice.randint(0, 40))],
        }
        for n in range(60)
    ]
    single = [await ask(running, **request) for request in asked]
    together = await asyncio.gather(*(running.client.post("/recall", json=request) for request in asked))
    for alone, response in zip(single, together, strict=True):
        batched = response.json()
        assert ids(batched) == ids(alone)
        for left, right in zip(batched["candidates"], alone["candidates"], strict=True):
            assert left["score"] == pytest.approx(right["score"], abs=1e-5)
    assert max(int(r.headers["server-timing"].split('desc="')[1].split('"')[0]) for r in together) > 4


async def test_a_failing_model_falls_back_degraded(start: Any) -> None:
    running = await start()

    class Broken(Engine):
        def recall(self, requests: Any) -> Any:
            raise RuntimeError("CUDA out of memory")

    running.service.swap(Broken(running.service.engine.bundle, device="cpu"))
    answer = await ask(running, sequence=SEQUENCE, top_k=5)
    assert (answer["route"], answer["reason"], answer["degraded"]) == ("popular", "model", True)
    assert not {"i3", "i7", "i9"} & set(ids(answer))
    assert len(ids(answer)) == 5


async def test_a_request_keeps_the_engine_that_it_began_with(start: Any) -> None:
    """A swap while the sequence is being read: bundle, vocabulary and answer stay the old one's."""
    running = await start()
    service = running.service
    await running.client.post("/events", json=[{"user_id": "u", **b} for b in SEQUENCE])
    old = service.engine

    new = dataclasses.replace(old.bundle, bundle_id="new", item_ids=[], item_index_of={}, popular=[])
    task = asyncio.create_task(service.recall(RecallRequest(user_id="u"), Deadline(1e9)))
    await asyncio.sleep(0)
    service.swap(Engine(new, device="cpu"))
    recalled = await task
    assert recalled.bundle == old.bundle.bundle_id
    assert recalled.route == "t2diff"
    assert len(recalled.candidates.item_ids) == 57
    assert "60 items" in recalled.shortfall


async def test_the_event_loop_never_runs_torch_or_faiss(start: Any) -> None:
    running = await start()
    await running.client.post("/events", json=[{"user_id": "u", **b} for b in SEQUENCE])
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "c_call":
            module = getattr(argument, "__module__", None) or ""
        seen.add(str(module).split(".")[0])

    async def every_route() -> None:
        for body in ({"user_id": "u"}, {"user_id": "nobody"}, {"user_id": "u", "sequence": SEQUENCE}):
            assert (await running.client.post("/recall", json=body)).status_code == 200
        await running.client.post("/recall/batch", json={"requests": [{"user_id": "u"}] * 3})

    await every_route()  # the first time, FastAPI reads source files through a hook of torch's
    sys.setprofile(note)  # of this thread alone
    try:
        await every_route()
    finally:
        sys.setprofile(None)
    assert "service" in seen  # the net is out
    assert not {"torch", "faiss", "model"} & seen


async def test_random_cancellation_inside_the_service_crosses_nobody(start: Any) -> None:
    """Tasks are cancelled at any await: in the store, in the queue, on the device."""
    running = await start(max_batch=8)
    service = running.service
    users = [f"user{n}" for n in range(20)]
    expected = {}
    for number, user in enumerate(users):
        items = [{"item_id": f"i{1 + (number * 3 + k) % 60}", "timestamp": k} for k in range(5)]
        await running.client.post("/events", json=[{"user_id": user, **item} for item in items])
        expected[user] = ids(await ask(running, user_id=user, top_k=10))
    assert len({tuple(candidates) for candidates in expected.values()}) == len(users)
    choice = random.Random(0)
    outcomes = {"answered": 0, "cancelled": 0}

    async def recall(user: str) -> None:
        recalled = await service.recall(RecallRequest(user_id=user, top_k=10), Deadline(1e9))
        assert recalled.user_id == user
        assert recalled.candidates.item_ids == expected[user]
        outcomes["answered"] += 1

    for _ in range(25):
        tasks = [asyncio.create_task(recall(choice.choice(users))) for _ in range(16)]
        for task in choice.sample(tasks, 8):
            asyncio.get_running_loop().call_later(choice.random() * 0.008, task.cancel)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, asyncio.CancelledError):
                outcomes["cancelled"] += 1
            else:
                assert result is None or isinstance(result, ServiceError), result
    assert outcomes["answered"] > 150
    assert outcomes["cancelled"] > 10
