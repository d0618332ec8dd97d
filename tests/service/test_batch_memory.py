"""Out of memory on the device: the batch is computed in halves, no larger one for a while, nobody fails.

The error is torch's own, raised by a tower that stands in for a GPU: not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import PaddedSequences
from model.batch import Sequence as Behaviours
from model.engines.interface import EagerTower
from service.batch_memory import RETRY_AFTER_S, BatchMemory
from service.engine import Engine, EngineAnswer, EngineRequest
from service.errors import EngineFailedError

pytestmark = pytest.mark.anyio
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class SmallDevice(EagerTower):
    """A tower on a device that holds no batch above `room`."""

    room = 1000

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.bundle.model)
        self.tried: list[int] = []

    def embed(self, padded: PaddedSequences, keys: Sequence[int]) -> np.ndarray:
        self.tried.append(len(keys))
        if len(keys) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().embed(padded, keys)


def asked(count: int) -> list[EngineRequest]:
    times = np.arange(3) + 1_600_000_000
    return [
        EngineRequest(f"u{n}", 0, Behaviours(np.array([1 + n, 7, 9]), times), 10, np.empty(0, np.int64))
        for n in range(count)
    ]


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_everybody_is_answered(engine: Engine) -> None:
    tower = SmallDevice(engine)
    tower.room = 5
    limited = Engine(engine.bundle, device="cpu", tower=tower, memory=BatchMemory())
    answers = limited.recall(asked(32))
    assert [a.candidates.item_ids for a in answers] == [
        a.candidates.item_ids for a in engine.recall(asked(32))
    ]
    assert tower.tried == [32, 16, 8, 4, 4, 4, 4, 4, 4, 4, 4]
    tower.tried.clear()
    limited.recall(asked(6))
    assert tower.tried == [4, 2], "the next batch knows"


def test_after_a_while_twice_as_much_is_tried_until_what_failed_first_fits(engine: Engine) -> None:
    tower, clock = SmallDevice(engine), Clock()
    told: list[tuple[int, bool]] = []
    memory = BatchMemory(on_limit=lambda limit, ran_out: told.append((limit, ran_out)), clock=clock)
    limited = Engine(engine.bundle, device="cpu", tower=tower, memory=memory)
    tower.room = 9
    limited.recall(asked(32))
    assert told == [(16, True), (8, True)]
    clock.now += RETRY_AFTER_S
    limited.recall(asked(32))
    assert told[2:] == [(16, False), (8, True)], "too early: back to what fits"
    tower.room = 1000
    for _ in range(3):
        clock.now += RETRY_AFTER_S
        limited.recall(asked(32))
    assert told[4:] == [(16, False), (32, False), (0, False)]
    assert tower.tried[-1] == 32


def test_one_request_that_does_not_fit_alone_fails_alone(engine: Engine) -> None:
    class NoRoomForOne(SmallDevice):
        def embed(self, padded: PaddedSequences, keys: Sequence[int]) -> np.ndarray:
            if 5 in padded.item_index:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().embed(padded, keys)

    limited = Engine(engine.bundle, device="cpu", tower=NoRoomForOne(engine), memory=BatchMemory())
    answers = limited.recall(asked(8))
    failed = [isinstance(answer, EngineFailedError) for answer in answers]
    assert failed == [n == 4 for n in range(8)]  # the one with item 5
    assert all(isinstance(answer, EngineAnswer) for answer in answers if answer is not answers[4])


async def test_the_service_answers_through_it_and_counts_it(start: Any, engine: Engine) -> None:
    running = await start()
    tower = SmallDevice(engine)
    tower.room = 3
    metrics = running.service.metrics
    memory = BatchMemory(on_limit=metrics.set_batch_limit)
    running.service.swap(Engine(engine.bundle, device="cpu", tower=tower, memory=memory))
    requests = [{"user_id": f"u{n}", "sequence": SEQUENCE} for n in range(32)]
    members = (await running.client.post("/recall/batch", json={"requests": requests})).json()["responses"]
    assert {member["answer"]["route"] for member in members} == {"t2diff"}
    assert max(tower.tried) > tower.room, "it was met"
    assert metrics.registry.get_sample_value("t2diff_out_of_memory_total") >= 1
    assert metrics.registry.get_sample_value("t2diff_batch_limit") in (1, 2, 3)
