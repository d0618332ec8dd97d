"""Soft degradation: when the level moves, what each level answers, and that it can be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model.batch import Sequence
from service.degradation import (
    LOWER_AFTER_S,
    LOWER_AT,
    RAISE_AFTER_S,
    RAISE_AT,
    STEPS,
    SoftDegradation,
)
from service.engine import Engine, EngineAnswer, EngineRequest, build_engine
from service.settings import ServiceSettings
from tests.untrained import TINY

pytestmark = pytest.mark.anyio
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]
HIGH, MIDDLE, LOW = RAISE_AT + 0.1, (RAISE_AT + LOWER_AT) / 2, LOWER_AT / 2


class Clocked:
    """A controller on a clock that only the test moves."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.now = 100.0
        self.levels: list[int] = []
        self.control = SoftDegradation(enabled=enabled, on_level=self.levels.append, clock=lambda: self.now)

    def feel(self, pressure: float, seconds: float, every: float = 0.01) -> list[bool]:
        """So much pressure for so long; what each request in it was told."""
        told = []
        for _ in range(round(seconds / every)):
            self.now += every
            told.append(self.control.prefers_popular(pressure))
        return told


def test_pressure_raises_the_level_step_by_step_and_then_says_popular() -> None:
    clocked = Clocked()
    assert not any(clocked.feel(HIGH, RAISE_AFTER_S))
    assert clocked.levels == [1]
    assert not any(clocked.feel(HIGH, 0.02))
    assert clocked.levels == [1, 2]
    told = clocked.feel(HIGH, 2 * RAISE_AFTER_S)
    assert clocked.control.level == len(STEPS)
    assert not any(told[:20]), "the last level gets its time to show"
    assert all(told[-20:])


def test_popular_is_for_those_who_find_the_pressure_high_and_for_nobody_else() -> None:
    clocked = Clocked()
    clocked.feel(HIGH, 4 * RAISE_AFTER_S)
    assert not any(clocked.feel(MIDDLE, 1.0))
    assert clocked.feel(HIGH, 0.01) == [True]


def test_only_an_unbroken_calm_lowers_the_level_and_one_at_a_time() -> None:
    clocked = Clocked()
    clocked.feel(HIGH, 4 * RAISE_AFTER_S)
    for _ in range(5):
        clocked.feel(LOW, 0.9 * LOWER_AFTER_S)
        clocked.feel(MIDDLE, 0.01)
    assert clocked.levels == [1, 2]
    clocked.feel(LOW, LOWER_AFTER_S + 0.02)
    assert clocked.levels == [1, 2, 1]
    clocked.feel(LOW, LOWER_AFTER_S + 0.02)
    assert clocked.levels == [1, 2, 1, 0]
    clocked.feel(LOW, 3 * LOWER_AFTER_S)
    assert clocked.control.level == 0


def test_between_the_two_limits_nothing_moves() -> None:
    clocked = Clocked()
    clocked.feel(HIGH, 0.02)
    assert clocked.control.level == 1
    clocked.feel(MIDDLE, 60.0, every=0.1)
    assert clocked.levels == [1]


def test_a_pressure_that_jumps_to_and_fro_does_not_make_the_level_jump() -> None:
    clocked = Clocked()
    for _ in range(200):
        clocked.feel(HIGH, 0.01)
        clocked.feel(LOW, 0.04)
    assert clocked.levels == [1, 2], "up with the peaks, never down between them"


def test_switched_off_nothing_moves() -> None:
    clocked = Clocked(enabled=False)
    assert not any(clocked.feel(5.0, 60.0, every=0.1))
    assert clocked.levels == []
    assert ServiceSettings(bundles="").soft_degradation is False


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """The tiny model takes four steps in all."""
    monkeypatch.setattr("service.degradation.STEPS", (2, 1))
    return (2, 1)


def asked(count: int) -> list[EngineRequest]:
    sequence = Sequence(np.array([3, 7, 9]), np.arange(3) + 1_600_000_000, 1_700_000_000)
    return [EngineRequest(f"u{n}", 0, sequence, 10, np.empty(0, np.int64)) for n in range(count)]


def degradable(engine: Engine, control: SoftDegradation, **settings: Any) -> Engine:
    values = ServiceSettings(bundles="", soft_degradation=True, tower_engine="eager", **settings)
    return build_engine(engine.bundle, device="cpu", settings=values, degradation=control)


def test_a_level_is_one_number_of_steps_for_the_whole_batch_by_ddim(
    engine: Engine, few_steps: tuple[int, ...]
) -> None:
    control = SoftDegradation(enabled=True)
    degrading = degradable(engine, control)
    degrading.warm_up(2)
    for level, steps in enumerate([None, *few_steps]):
        control.level = level
        answers = degrading.recall(asked(3))
        assert all(isinstance(answer, EngineAnswer) for answer in answers)
        assert {answer.num_steps for answer in answers} == {steps}
        sampled = {} if steps is None else {"num_inference_steps": steps, "sampler": "ddim"}
        values = ServiceSettings(bundles="", tower_engine="eager", **sampled)
        plain = build_engine(engine.bundle, device="cpu", settings=values).recall(asked(3))
        assert [a.candidates.item_ids for a in answers] == [a.candidates.item_ids for a in plain]


def test_a_level_never_takes_more_steps_than_set(engine: Engine, few_steps: tuple[int, ...]) -> None:
    control = SoftDegradation(enabled=True)
    degrading = degradable(engine, control, num_inference_steps=1, sampler="ddim")
    control.level = 2
    assert degrading.recall(asked(1))[0].num_steps is None
    assert TINY["num_steps"] > few_steps[0]


async def test_fewer_steps_and_popular_can_be_seen_in_answers_and_metrics(
    start: Any, engine: Engine, few_steps: tuple[int, ...]
) -> None:
    running = await start(soft_degradation=True)
    service = running.service
    service.swap(degradable(engine, service.degradation))

    async def ask() -> tuple[str, bool, str | None]:
        answer = (await running.client.post("/recall", json={"user_id": "u", "sequence": SEQUENCE})).json()
        assert not {"i3", "i7", "i9"} & {candidate["item_id"] for candidate in answer["candidates"]}
        return answer["route"], answer["degraded"], answer.get("reason")

    def metric(name: str, **labels: str) -> float:
        return service.metrics.registry.get_sample_value(name, labels) or 0.0

    assert await ask() == ("t2diff", False, None)
    service.in_flight.count = int(0.6 * service.in_flight.limit)  # as if so many were under way
    assert await ask() == ("t2diff", True, "steps_2")
    assert metric("t2diff_degradation_level") == 1
    service.degradation._changed_at -= 1.0
    assert await ask() == ("t2diff", True, "steps_1")
    service.degradation._changed_at -= 1.0
    assert await ask() == ("popular", True, "load")
    assert metric("t2diff_fewer_steps_total", steps="2") == 1
    assert metric("t2diff_fewer_steps_total", steps="1") == 1
    assert metric("t2diff_fallbacks_total", reason="load", degraded="true") == 1
    service.in_flight.count = 0
    assert await ask() == ("t2diff", True, "steps_1")
    service.degradation._calm_since -= LOWER_AFTER_S
    assert await ask() == ("t2diff", True, "steps_2")
    service.degradation._calm_since -= LOWER_AFTER_S
    assert await ask() == ("t2diff", False, None)


async def test_switched_off_a_crowd_is_answered_as_set(start: Any) -> None:
    running = await start()
    running.service.in_flight.count = running.service.in_flight.limit - 1
    answer = (await running.client.post("/recall", json={"user_id": "u", "sequence": SEQUENCE})).json()
    assert (answer["route"], answer["degraded"]) == ("t2diff", False)
