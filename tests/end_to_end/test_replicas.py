"""Three replicas behind HAProxy with one Redis Cluster: what only several of them can get wrong."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from index_builder.publish import Store
from loadtest.stress.redis_process import RedisProcess
from service.client import RecallClient, RecallError, RecallUnavailableError
from tests.redis_cluster import ClusterProcesses
from tests.replicas import Replicas
from tests.waiting import eventually

pytestmark = pytest.mark.any_target
TINY = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3}
HISTORY = [f"i{n}" for n in range(1, 6)]


@pytest.fixture(autouse=True)
def _replicas(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--target") != "replicas":
        pytest.skip("`make scale` runs it: --target replicas")


@pytest.fixture(scope="module")
def served(serve: Any, tiny_bundles: Path) -> Replicas:
    return serve(tiny_bundles, shutdown_delay_s=1)


def answer(client: httpx.Client, user: str, **asked: Any) -> dict[str, Any]:
    response = client.post("/recall", json={"user_id": user, "top_k": 10, **asked})
    assert response.status_code == 200, response.text
    return response.json()


def test_an_event_that_one_replica_took_is_seen_through_every_other_at_once(served: Replicas) -> None:
    direct = [replica.client() for replica in served.each]
    for number in range(30):
        user = f"wanderer{number}"
        events = [{"user_id": user, "item_id": item, "timestamp": n} for n, item in enumerate(HISTORY)]
        took = direct[number % 3]
        assert took.post("/events", json=events).status_code == 200
        answers = [answer(client, user) for client in direct]
        assert {each["route"] for each in answers} == {"t2diff"}
        assert not {c["item_id"] for c in answers[0]["candidates"]} & {*HISTORY}
        assert answers[0]["candidates"] == answers[1]["candidates"] == answers[2]["candidates"]
    with served.client() as client:
        before = [replica.metric("t2diff_recalls_total") for replica in served.each]
        through = [answer(client, "wanderer0") for _ in range(30)]
        assert {each["route"] for each in through} == {"t2diff"}
        grown = [r.metric("t2diff_recalls_total") - n for r, n in zip(served.each, before, strict=True)]
    assert min(grown) > 0, "the proxy asks every replica"


class Load:
    """Threads that send requests through the proxy until they are told to stop.

    with_client: as a program with the service's Python client does, which repeats what was cut off
    """

    def __init__(self, url: str, *, num_threads: int = 6, with_client: bool = False) -> None:
        self.answers: Counter[str] = Counter()
        self._url = url
        self._going_on = True
        ask = self._ask_with_client if with_client else self._ask
        self._threads = [threading.Thread(target=ask, args=(n,)) for n in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def until(self, num_answered: int) -> None:
        eventually(lambda: self.answers["200"] >= num_answered, f"{self.answers}")

    def stop(self) -> Counter[str]:
        self._going_on = False
        for thread in self._threads:
            thread.join()
        return self.answers

    def _ask(self, seed: int) -> None:
        choice = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while self._going_on:
                user = f"loaded{choice.randint(0, 200)}"
                path, body = "/recall", {"user_id": user, "top_k": 5}
                if choice.random() < 0.3:
                    path, body = "/events", {"user_id": user, "item_id": choice.choice(HISTORY)}
                try:
                    response = client.post(path, json=body)
                    outcome = "degraded" if response.json().get("degraded") else str(response.status_code)
                except httpx.TransportError as error:
                    outcome = type(error).__name__
                self.answers[outcome] += 1

    def _ask_with_client(self, seed: int) -> None:
        choice = random.Random(seed)
        with RecallClient(self._url, deadline_ms=20_000) as client:
            while self._going_on:
                user = f"loaded{choice.randint(0, 200)}"
                try:
                    degraded = client.recall(user, top_k=5).degraded
                    client.append([{"user_id": user, "item_id": choice.choice(HISTORY)}])
                    self.answers["degraded" if degraded else "200"] += 2
                except (RecallError, RecallUnavailableError) as error:
                    self.answers[str(error)] += 1


@pytest.mark.parametrize("with_client", [False, True], ids=["without repeating", "with the client"])
def test_a_replica_killed_under_requests_fails_none_that_the_proxy_may_repeat(
    serve: Any, tiny_bundles: Path, with_client: bool
) -> None:
    """HAProxy closes a connection whose request was cut off by a reset, for its caller to repeat it."""
    served = serve(tiny_bundles)
    load = Load(served.url, with_client=with_client)
    load.until(300)
    killed = served.each[0]
    killed.process.kill()
    killed.process.wait(10)
    load.until(load.answers["200"] + 600)
    answers = load.stop()
    print(f"\none of three replicas killed under {sum(answers.values())} requests: {dict(answers)}")
    cut_off = set() if with_client else {"RemoteProtocolError", "ReadError"}
    assert set(answers) - {"200"} <= cut_off, answers
    assert sum(answers[each] for each in cut_off) <= 6, "of each caller at most the one under way"


def test_a_published_bundle_reaches_every_replica_and_no_answer_is_lost_meanwhile(
    serve: Any, tiny_bundles: Path, copied: Any, build: Any
) -> None:
    folder = copied(tiny_bundles)
    served = serve(folder, reload_poll_s=0.3)
    load = Load(served.url, num_threads=3)
    load.until(100)
    store = Store(folder)
    for seed in (1, 2):
        newest = build(store, seed, TINY)
        store.publish(newest)
        for replica in served.each:
            with replica.client() as client:
                eventually(
                    lambda client=client, newest=newest: (
                        client.get("/v2/models/recall").json()["bundle"] == newest
                    ),
                    "a replica did not follow",
                )
        with served.client() as client:
            assert {answer(client, f"u{n}")["bundle"] for n in range(12)} == {newest}
    answers = load.stop()
    assert set(answers) == {"200"}, answers


@pytest.mark.parametrize("fate", ["stopped", "killed"])
def test_a_lost_node_of_the_cluster_costs_its_users_the_fallback_and_nobody_an_answer(
    serve: Any, tiny_bundles: Path, tmp_path: Path, fate: str
) -> None:
    with ClusterProcesses(tmp_path) as cluster:
        served = serve(
            tiny_bundles, redis_url=cluster.url, redis_read_timeout_ms=100, redis_write_timeout_ms=500
        )
        users = [cluster.key_of(number) for number in range(3)]
        events = [{"user_id": user, "item_id": item} for user in users for item in HISTORY]
        lost: RedisProcess = cluster.nodes[1]
        with served.client() as client:
            assert client.post("/events", json=events).status_code == 200
            assert {answer(client, user)["route"] for user in users for _ in range(6)} == {"t2diff"}
            lost.stop() if fate == "stopped" else lost.kill()
            for _ in range(20):
                first, second, third = (answer(client, user) for user in users)
                assert (first["route"], second["route"], third["route"]) == ("t2diff", "popular", "t2diff")
                assert second["degraded"]
                assert second["reason"] in ("store_timeout", "store_connection", "store_breaker_open")
            lost.go_on() if fate == "stopped" else lost.start()
            expected = (
                ("t2diff", False) if fate == "stopped" else ("popular", False)
            )  # it kept nothing on disk
            for replica in served.each:
                with replica.client() as direct:
                    eventually(
                        lambda direct=direct: _what(answer(direct, users[1])) == expected, "not restored"
                    )


def _what(given: dict[str, Any]) -> tuple[str, bool]:
    return given["route"], given["degraded"]
