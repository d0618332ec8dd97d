"""The Python client against a real service, a service that is gone, and one that turns callers away."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.client import AsyncRecallClient, RecallClient, RecallError, RecallUnavailableError, RetryBudget

pytestmark = pytest.mark.any_target
EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "ranking_stage.py"
SEQUENCE = [{"item_id": f"i{n}"} for n in range(1, 6)]


@pytest.fixture(scope="module")
def service(serve: Any, tiny_bundles: Path) -> Any:
    return serve(tiny_bundles)


def test_answers_are_typed_and_events_change_them(service: Any) -> None:
    with RecallClient(service.url, deadline_ms=20_000) as client:
        assert client.recall("eve").route == "popular"
        assert client.append([{"user_id": "eve", "item_id": "i1"}, {"user_id": "eve", "item_id": "i2"}]) == 2
        answer = client.recall("eve", top_k=7)
        assert (answer.route, answer.bundle, len(answer.candidates)) == ("t2diff", service.bundle, 7)
        assert answer.candidates[0].score >= answer.candidates[-1].score
        first, second = client.recall_batch([{"user_id": "eve"}, {"user_id": "eve", "top_k": 0}])
        assert first.answer is not None
        assert second.problem is not None
        assert "top_k" in second.problem.detail


def test_a_refusal_says_what_is_wrong_and_is_not_repeated(service: Any) -> None:
    before = service.metric("t2diff_responses_total", route="recall", status="422")
    with RecallClient(service.url) as client, pytest.raises(RecallError, match="top_k") as refused:
        client.recall("eve", top_k=0)
    assert (refused.value.status, refused.value.problem.errors[0].field) == (422, "top_k")
    assert service.metric("t2diff_responses_total", route="recall", status="422") == before + 1


def test_the_asyncio_client_asks_many_at_once(service: Any) -> None:
    async def ask() -> list[str]:
        async with AsyncRecallClient(service.url, deadline_ms=20_000) as client:
            answers = await asyncio.gather(
                *(client.recall(f"u{n}", top_k=3, sequence=SEQUENCE) for n in range(20))
            )
            assert await client.append([{"user_id": "u1", "item_id": "i1"}]) == 1
            assert len(await client.recall_batch([{"user_id": "u1"}])) == 1
        return [answer.user_id for answer in answers]

    assert asyncio.run(ask()) == [f"u{n}" for n in range(20)]


def test_what_cannot_be_reached_is_given_up_at_the_deadline() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with RecallClient(url, deadline_ms=200) as client, pytest.raises(RecallUnavailableError, match="200 ms"):
        client.recall("eve")
    with pytest.raises(RecallUnavailableError, match="ConnectError"):
        asyncio.run(AsyncRecallClient(url, deadline_ms=50).recall("eve"))
    with pytest.raises(ValueError, match="deadline_ms"):
        RecallClient(url, deadline_ms=0)


def test_a_service_that_starts_again_is_asked_again(
    serve: Any, tiny_bundles: Path, one_process: None
) -> None:
    first = serve(tiny_bundles)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    answers: list[Any] = []
    with RecallClient(first.url, deadline_ms=60_000, budget=RetryBudget(saved=1000)) as client:
        asking = threading.Thread(target=lambda: answers.append(client.recall("u", sequence=SEQUENCE)))
        asking.start()
        serve(tiny_bundles, port=first.port)
        asking.join()
    assert answers[0].route == "t2diff"


def test_retries_are_a_share_of_calls() -> None:
    budget = RetryBudget(share=0.1)
    at_first = sum(budget.spend() for _ in range(100))
    assert at_first == 10
    spent = 0
    for _ in range(1000):
        budget.earn()
        spent += budget.spend()
    assert spent == pytest.approx(100, abs=1)


def test_the_example_ranks(service: Any) -> None:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE), service.url, "eve"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert service.bundle in lines[0]
    assert len(lines) == 11
