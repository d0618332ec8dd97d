"""A client for callers in Python, blocking and asyncio: deadlines, retries within a budget, typed answers.

    with RecallClient("http://recall:8000", api_key=KEY, deadline_ms=50) as client:
        answer = client.recall("user-17", top_k=200)

What failed before an answer may be asked again, for every call repeats safely: a recall changes nothing, and
an event is kept once. Retries share the call's deadline, and a budget over all calls: when the service is
down, a caller that asks again and again only keeps it down.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from service.schemas import BatchMember, Problem, RecallAnswer

_RETRIED = frozenset({429, 503})
_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 1.0


class RecallError(Exception):
    """The service refused or failed.   problem: what it said   status: of HTTP"""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.title}: {problem.detail}")
        self.problem = problem
        self.status = problem.status


class RecallUnavailableError(Exception):
    """No answer within the deadline: not reachable, too slow, or turned away until then."""


class RetryBudget:
    """Retries as a share of calls, so that they cannot multiply the load of a service in trouble."""

    def __init__(self, share: float = 0.1, saved: float = 10.0) -> None:
        """saved: retries that may be made at once, after calls that needed none"""
        self._share = share
        self._most = self._saved = saved

    def earn(self) -> None:
        """One call was made."""
        self._saved = min(self._most, self._saved + self._share)

    def spend(self) -> bool:
        """Whether one retry is allowed."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


@dataclass(frozen=True)
class _Call:
    path: str
    body: bytes
    headers: dict[str, str]
    timeout_s: float
    pause_s: float  # before the next attempt, if the service does not say how long


class _Client:
    """What both clients share: requests, answers, and when to ask again."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_ms: int = 1000,
        budget: RetryBudget | None = None,
    ) -> None:
        """deadline_ms: of a call as a whole; the service is told what is left of it"""
        if deadline_ms < 1:
            raise ValueError(f"deadline_ms must be at least 1, got {deadline_ms}")
        self._url = url.rstrip("/")
        self._deadline_ms = deadline_ms
        self._budget = budget or RetryBudget()
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def _attempts(self, path: str, document: Any) -> Iterator[_Call]:
        """What to send, once and again, until an answer was found good or the deadline passed."""
        self._budget.earn()
        body, give_up = orjson.dumps(document), time.monotonic() + self._deadline_ms / 1000
        pause_s = _FIRST_PAUSE_S
        while (left_s := give_up - time.monotonic()) > 0:
            headers = {**self._headers, "X-Deadline-Ms": str(max(1, int(left_s * 1000)))}
            # At random, so that callers who failed together do not come back together.
            yield _Call(self._url + path, body, headers, left_s, pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            if not self._budget.spend():
                return

    def _judge(self, call: _Call, response: httpx.Response) -> float | None:
        """None for an answer; otherwise how many seconds to wait before asking again. Raises RecallError."""
        if response.status_code < 300:
            return None
        if response.status_code in _RETRIED:
            after = response.headers.get("Retry-After", "")
            return float(after) if after.isdigit() else call.pause_s
        raise RecallError(_problem(response))


class RecallClient(_Client):
    """The blocking client; threads may share one."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def recall(self, user_id: str, *, top_k: int = 100, **fields: Any) -> RecallAnswer:
        """Candidates for one user.   fields: of the API, such as exclude_item_ids, sequence, seed

        Raises RecallError for a refusal, RecallUnavailableError when the deadline passed without an answer.
        """
        body = self._post("/recall", {"user_id": user_id, "top_k": top_k, **fields})
        return RecallAnswer.model_validate_json(body)

    def recall_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[BatchMember]:
        """An answer or a refusal for each, in their order. Raises as `recall` does."""
        return _members(self._post("/recall/batch", {"requests": list(requests)}))

    def append(self, events: Iterable[Mapping[str, Any]]) -> int:
        """Store events; returns how many were accepted. Raises as `recall` does."""
        return _accepted(self._post("/events", list(events)))

    def _post(self, path: str, document: Any) -> bytes:
        last = "the retry budget is spent"
        for call in self._attempts(path, document):
            try:
                response = self._http.post(
                    call.path, content=call.body, headers=call.headers, timeout=call.timeout_s
                )
            except httpx.TransportError as error:
                last, pause = _named(error), call.pause_s
            else:
                wait = self._judge(call, response)
                if wait is None:
                    return response.content
                last, pause = f"status {response.status_code}", wait
            time.sleep(min(pause, call.timeout_s))
        raise RecallUnavailableError(f"no answer from {self._url} within {self._deadline_ms} ms: {last}")


class AsyncRecallClient(_Client):
    """The asyncio client, for one event loop."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def recall(self, user_id: str, *, top_k: int = 100, **fields: Any) -> RecallAnswer:
        """As `RecallClient.recall`."""
        body = await self._post("/recall", {"user_id": user_id, "top_k": top_k, **fields})
        return RecallAnswer.model_validate_json(body)

    async def recall_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[BatchMember]:
        """As `RecallClient.recall_batch`."""
        return _members(await self._post("/recall/batch", {"requests": list(requests)}))

    async def append(self, events: Iterable[Mapping[str, Any]]) -> int:
        """As `RecallClient.append`."""
        return _accepted(await self._post("/events", list(events)))

    async def _post(self, path: str, document: Any) -> bytes:
        last = "the retry budget is spent"
        for call in self._attempts(path, document):
            try:
                response = await self._http.post(
                    call.path, content=call.body, headers=call.headers, timeout=call.timeout_s
                )
            except httpx.TransportError as error:
                last, pause = _named(error), call.pause_s
            else:
                wait = self._judge(call, response)
                if wait is None:
                    return response.content
                last, pause = f"status {response.status_code}", wait
            await asyncio.sleep(min(pause, call.timeout_s))
        raise RecallUnavailableError(f"no answer from {self._url} within {self._deadline_ms} ms: {last}")


def _members(body: bytes) -> list[BatchMember]:
    return [BatchMember.model_validate(member) for member in orjson.loads(body)["responses"]]


def _accepted(body: bytes) -> int:
    return int(orjson.loads(body)["accepted"])


def _problem(response: httpx.Response) -> Problem:
    """The service's own words; a proxy between may have none."""
    try:
        return Problem.model_validate_json(response.content)
    except ValueError:
        status = response.status_code
        return Problem(
            type="about:blank", title=response.reason_phrase, status=status, detail="-", bundle=None
        )


def _named(error: httpx.TransportError) -> str:
    return f"{type(error).__name__} {error}".strip()
