"""Arms side by side in one service: who answers whom, what is compared, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from index_builder.bundle import load_bundle
from index_builder.publish import Store
from service.answer_overlap import agreement
from service.arms import Arms
from service.comparisons import Comparisons
from service.engine import Engine
from service.experiments import Experiment, Router

pytestmark = pytest.mark.anyio
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]
USERS = [f"user-{number}" for number in range(60)]


def experiment(*arms: dict[str, Any], **settings: Any) -> Experiment:
    return Experiment(name="trial", arms=arms, **settings)  # type: ignore[arg-type]


TWO = experiment({"name": "control", "share": 50}, {"name": "challenger", "bundle": "other", "share": 50})


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, build: Any) -> Engine:
    """Another bundle over the same items."""
    store = Store(tmp_path_factory.mktemp("other"))
    return Engine(load_bundle(Path(store.url) / build(store, 5)), device="cpu")


class Trial:
    """A service that runs an experiment, and its metrics."""

    def __init__(self, running: Any, engines: dict[str, Engine], experiment: Experiment) -> None:
        self.running = running
        running.service.run_experiment(experiment, engines)
        running.service.arms._chance = random.Random(0)

    async def recall(self, user: str, **headers: str) -> Any:
        asked = {"user_id": user, "sequence": SEQUENCE, "top_k": 10}
        return await self.running.client.post("/recall", json=asked, headers=headers)

    def value(self, name: str, **labels: str) -> float:
        labels = {"experiment": "trial", **labels}
        found = self.running.service.metrics.registry.get_sample_value(f"t2diff_{name}", labels)
        return 0.0 if found is None else found

    async def until(self, count: float, name: str, **labels: str) -> None:
        give_up = time.monotonic() + 20
        while self.value(name, **labels) < count:
            assert time.monotonic() < give_up, (name, labels, self.value(name, **labels))
            await asyncio.sleep(0.01)


@pytest.fixture
async def trial(start: Any, engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("service.comparisons.PATIENCE_S", 60.0)  # a loaded machine drops nothing
    running = await start(log_requests="all")
    return lambda chosen: Trial(running, {"current": engine, "other": other}, chosen)


async def test_each_user_is_answered_by_the_bundle_of_its_arm_and_told_so(
    trial: Any, engine: Engine, other: Engine
) -> None:
    router = Router(TWO)
    under_test = trial(TWO)
    bundle_of = {"control": engine.bundle.bundle_id, "challenger": other.bundle.bundle_id}
    answers = {user: (await under_test.recall(user)).json() for user in USERS}
    for user, answer in answers.items():
        assert (answer["experiment"], answer["arm"]) == ("trial", router.arm_of(user))
        assert answer["bundle"] == bundle_of[answer["arm"]]
        assert answer["route"] == "t2diff"
    asked = {"requests": [{"user_id": user, "sequence": SEQUENCE, "top_k": 10} for user in USERS]}
    batch = (await under_test.running.client.post("/recall/batch", json=asked)).json()["responses"]
    for user, member in zip(USERS, batch, strict=True):
        alone, together = answers[user], member["answer"]
        assert (together["arm"], together["bundle"]) == (alone["arm"], alone["bundle"])
        assert [c["item_id"] for c in together["candidates"]] == [c["item_id"] for c in alone["candidates"]]
    assert {answer["arm"] for answer in answers.values()} == {"control", "challenger"}
    counted = [under_test.value("arm_recalls_total", arm=arm, by="share") for arm in bundle_of]
    assert sum(counted) == 2 * len(USERS)
    assert under_test.value("arm_stage_seconds_count", arm="control", stage="tower") == counted[0]


async def test_without_an_experiment_nothing_speaks_of_one(start: Any) -> None:
    running = await start()
    asked = {"user_id": "u", "sequence": SEQUENCE}
    assert not {"experiment", "arm"} & set((await running.client.post("/recall", json=asked)).json())
    assert "experiment" not in (await running.client.get("/v2/models/recall")).json()
    assert b"t2diff_arm_recalls_total{" not in running.service.metrics.exposition()
    refused = await running.client.post("/recall", json=asked, headers={"X-Experiment-Arm": "control"})
    assert refused.status_code == 400
    assert refused.json()["detail"] == "X-Experiment-Arm: no experiment runs here; leave the header out"


async def test_a_header_names_an_arm_for_debugging_and_is_counted_apart(trial: Any) -> None:
    under_test = trial(TWO)
    for user in USERS[:10]:
        for arm in ("control", "challenger"):
            answer = (await under_test.recall(user, **{"X-Experiment-Arm": arm})).json()
            assert answer["arm"] == arm
    assert under_test.value("arm_recalls_total", arm="challenger", by="header") == 10
    assert under_test.value("arm_recalls_total", arm="challenger", by="share") == 0


@pytest.mark.parametrize("name", ["nobody", "shadow", "", "Control", "a\tb", "x" * 500])
async def test_a_header_that_names_no_answering_arm_is_refused(trial: Any, name: str) -> None:
    arms = [*TWO.model_dump()["arms"], {"name": "shadow", "share": 10, "shadow": True}]
    under_test = trial(experiment(*arms))
    refused = await under_test.recall("u", **{"X-Experiment-Arm": name})
    assert refused.status_code == 400
    detail = refused.json()["detail"]
    assert detail.startswith("X-Experiment-Arm: ")
    assert detail.endswith("send one of control, challenger")
    assert len(detail) < 200


async def test_a_shadow_of_the_same_bundle_agrees_wholly_and_is_never_returned(trial: Any) -> None:
    shadow = {"name": "twin", "share": 100, "shadow": True}
    alone = {"name": "control", "share": 100}
    under_test = trial(experiment(alone, shadow))
    for number, user in enumerate(USERS, start=1):  # one by one: comparisons are dropped when many wait
        assert (await under_test.recall(user)).json()["arm"] == "control"
        await under_test.until(number, "arm_overlap_count", arm="twin")
    assert under_test.value("arm_overlap_sum", arm="twin") == len(USERS)
    assert under_test.value("arm_rank_biased_overlap_sum", arm="twin") == pytest.approx(len(USERS))
    assert under_test.value("arm_score_shift", arm="twin") == pytest.approx(0, abs=1e-4)
    assert under_test.value("arm_recalls_total", arm="twin", by="shadow") == len(USERS)
    assert under_test.value("arm_stage_seconds_count", arm="twin", stage="tower") == len(USERS)


async def test_a_shadow_of_another_bundle_shows_how_far_its_answers_and_scores_lie(
    trial: Any, engine: Engine, other: Engine
) -> None:
    """Against the same comparison made from the arms' own answers."""
    challenger = {"name": "challenger", "bundle": "other", "share": 0}
    under_test = trial(experiment({"name": "control", "share": 100}, challenger))
    expected = []
    for user in USERS:
        answers = [
            (await under_test.recall(user, **{"X-Experiment-Arm": arm})).json()["candidates"]
            for arm in ("challenger", "control")
        ]
        ids = [[c["item_id"] for c in answer] for answer in answers]
        scores = [[c["score"] for c in answer] for answer in answers]
        expected.append(agreement(ids[0], scores[0], ids[1], scores[1]))
    shadow = {"name": "shadow", "bundle": "other", "share": 100, "shadow": True}
    under_test = trial(experiment({"name": "control", "share": 100}, shadow))
    for number, user in enumerate(USERS, start=1):
        await under_test.recall(user)
        await under_test.until(number, "arm_overlap_count", arm="shadow")
    mean_shift = sum(measured.score_shift for measured in expected) / len(USERS)
    overlap = sum(measured.overlap for measured in expected)
    assert overlap < 0.9 * len(USERS), "the bundles differ"
    assert under_test.value("arm_overlap_sum", arm="shadow") == pytest.approx(overlap)
    assert under_test.value("arm_score_shift", arm="shadow") == pytest.approx(mean_shift, abs=1e-4)


async def test_the_other_arms_are_compared_by_asking_the_control(trial: Any) -> None:
    same = experiment({"name": "control", "share": 50}, {"name": "twin", "share": 50}, compared=100)
    under_test = trial(same)
    for user in USERS:
        await under_test.recall(user)
        of_twin = under_test.value("arm_recalls_total", arm="twin", by="share")
        await under_test.until(of_twin, "arm_overlap_count", arm="twin")
    assert of_twin > 10
    assert under_test.value("arm_overlap_sum", arm="twin") == of_twin
    assert under_test.value("arm_overlap_count", arm="control") == 0
    assert under_test.value("arm_recalls_total", arm="control", by="shadow") == 0


async def test_a_shadow_is_asked_for_its_share_of_the_requests(engine: Engine, trial: Any) -> None:
    shadow = {"name": "shadow", "share": 25, "shadow": True}
    arms = trial(experiment({"name": "control", "share": 100}, shadow)).running.service.arms
    asked = sum(len(arms.comparisons(arms.control)) for _ in range(10_000))
    assert 2_300 < asked < 2_700  # 4.6 standard deviations


async def test_a_comparison_begins_after_the_answer_was_sent(trial: Any) -> None:
    """The whole body has gone out before anything is handed to the background."""
    shadow = {"name": "shadow", "share": 100, "shadow": True}
    under_test = trial(experiment({"name": "control", "share": 100}, shadow))
    running = under_test.running
    events: list[str] = []

    class Noting(Comparisons):
        def begin(self, *arguments: Any) -> None:
            events.append("compared")
            super().begin(*arguments)

    running.service.comparisons = Noting()
    for path, body in (
        ("/recall", b'{"user_id": "u", "sequence": [{"item_id": "i3"}]}'),
        ("/recall/batch", b'{"requests": [{"user_id": "u", "sequence": [{"item_id": "i3"}]}]}'),
    ):
        events.clear()

        async def receive(body: bytes = body) -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            await asyncio.sleep(0.01)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                events.append("sent")

        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        await running.app(scope | {"root_path": "", "http_version": "1.1"}, receive, send)
        assert events == ["sent", "compared"], path
    await running.service.comparisons.close()


async def test_comparisons_under_load_are_dropped_and_counted_and_no_request_waits(
    trial: Any, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shadow whose model takes a fifth of a second: what cannot be compared in time is given up."""

    class Slow(Engine):
        def recall(self, requests: Any) -> Any:
            assert len(requests) == 1, "a request that arrives meanwhile waits for one computation, not more"
            time.sleep(0.2)
            return super().recall(requests)

    shadow = {"name": "slow", "bundle": "slow", "share": 100, "shadow": True}
    monkeypatch.setattr("service.comparisons.PATIENCE_S", 2.0)
    under_test = trial(TWO)
    service = under_test.running.service
    slow = Slow(other.bundle, device="cpu")
    service.run_experiment(
        experiment({"name": "control", "share": 100}, shadow), {"current": service.engine, "slow": slow}
    )
    asked = {"requests": [{"user_id": user, "sequence": SEQUENCE} for user in USERS]}
    for _ in range(3):
        answers = (await under_test.running.client.post("/recall/batch", json=asked)).json()["responses"]
        assert {answer["answer"]["degraded"] for answer in answers} == {False}
    assert under_test.value("arm_comparisons_dropped_total", arm="slow", reason="full") > len(USERS)
    await under_test.until(len(USERS) // 2, "arm_comparisons_dropped_total", arm="slow", reason="late")
    assert under_test.value("arm_recalls_total", arm="slow", by="shadow") > 0, "some were compared"
    await service.comparisons.close()


async def test_a_shadow_that_fails_or_knows_nothing_is_counted_and_changes_no_answer(
    trial: Any, other: Engine
) -> None:
    class Broken(Engine):
        def recall(self, requests: Any) -> Any:
            raise RuntimeError("out of memory")

    under_test = trial(TWO)
    service = under_test.running.service
    broken = Broken(other.bundle, device="cpu")
    shadow = {"name": "broken", "bundle": "broken", "share": 100, "shadow": True}
    engines = {"current": service.engine, "broken": broken}
    service.run_experiment(experiment({"name": "control", "share": 100}, shadow), engines)
    answer = (await under_test.recall("u")).json()
    assert (answer["arm"], answer["degraded"]) == ("control", False)
    await under_test.until(1, "arm_comparisons_dropped_total", arm="broken", reason="failed")
    assert under_test.value("arm_fallbacks_total", arm="broken", reason="model") == 1


async def test_what_an_arm_cannot_answer_is_counted_by_reason_and_not_compared(trial: Any) -> None:
    same = experiment({"name": "control", "share": 50}, {"name": "twin", "share": 50}, compared=100)
    under_test = trial(same)
    for arm in ("control", "twin"):
        asked, header = {"user_id": "nobody-knows-me"}, {"X-Experiment-Arm": arm}
        answer = await under_test.running.client.post("/recall", json=asked, headers=header)
        assert (answer.json()["route"], answer.json()["arm"]) == ("popular", arm)
        assert under_test.value("arm_fallbacks_total", arm=arm, reason="no_history") == 1
    await asyncio.sleep(0.05)
    assert under_test.value("arm_overlap_count", arm="twin") == 0


async def test_the_model_route_lists_the_arms(trial: Any, engine: Engine, other: Engine) -> None:
    under_test = trial(TWO)
    shown = (await under_test.running.client.get("/v2/models/recall")).json()
    assert shown["bundle"] == engine.bundle.bundle_id
    assert shown["experiment"]["name"] == "trial"
    assert [(arm["name"], arm["bundle"], arm["share"]) for arm in shown["experiment"]["arms"]] == [
        ("control", engine.bundle.bundle_id, 50),
        ("challenger", other.bundle.bundle_id, 50),
    ]
    info = under_test.value(
        "experiment_info", arm="challenger", bundle=other.bundle.bundle_id, shadow="false"
    )
    assert info == 1


async def test_a_swap_reaches_the_arms_that_follow_the_pointer_and_no_other(
    trial: Any, engine: Engine, other: Engine
) -> None:
    under_test = trial(TWO)
    service = under_test.running.service
    newer = Engine(other.bundle, device="cpu")
    service.swap(newer)
    assert service.engine is newer
    assert [arm["bundle"] for arm in service.arms.document()["arms"]] == [other.bundle.bundle_id] * 2
    assert {id(used) for used in service.engines()} == {id(newer), id(other)}
    assert (
        under_test.value("experiment_info", arm="control", bundle=engine.bundle.bundle_id, shadow="false")
        == 0
    )


async def test_an_engine_that_no_arm_names_any_more_is_let_go(trial: Any, other: Engine) -> None:
    shadow = {"name": "shadow", "bundle": "other", "share": 100, "shadow": True}
    under_test = trial(TWO)
    service = under_test.running.service
    passing = Engine(other.bundle, device="cpu")
    engines = {"current": service.engine, "other": passing}
    service.run_experiment(experiment({"name": "control", "share": 100}, shadow), engines)
    for user in USERS[:5]:
        await under_test.recall(user)
    await under_test.until(5, "arm_overlap_count", arm="shadow")
    gone = weakref.ref(passing)
    del passing, engines
    service.run_experiment(None, {"current": service.engine})
    give_up = time.monotonic() + 5
    while gone() is not None:
        assert time.monotonic() < give_up, "an engine of an experiment that ended is still held"
        await asyncio.sleep(0.01)
        gc.collect()
    assert b"t2diff_arm_recalls_total{" not in service.metrics.exposition()


async def test_arms_of_one_bundle_share_its_engine(engine: Engine, other: Engine, start: Any) -> None:
    running = await start()
    arms = Arms(
        experiment({"name": "a", "share": 50}, {"name": "b", "share": 50}, {"name": "c", "share": 0}),
        {"current": engine},
        running.service.metrics.arms,
    )
    assert list(arms.engines()) == [engine]
