"""Many callers at once, each asking again as soon as it is answered, some of whom leave before that.

Whoever leaves resets the connection at a random moment after its request; whoever is in a hurry sends a
deadline of a few milliseconds. Every answer is held to the question that it came back to: request id, user
id, and candidates that are that user's.
"""

from __future__ import annotations

import heapq
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from loadtest.stress.own_process import in_own_process
from loadtest.stress.raw_connection import RawConnection, Reply, recall_bytes

_STALLED_S = 30.0
_TOLERANCE = 1e-4  # of a user's largest score: who shares a batch moves a score in single precision by less
_REPLACED = 1  # by an item whose score is as near
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Caller:
    """A user that the crowd asks for.   candidates: item id -> score, what is its own; None: not known"""

    user_id: str
    candidates: dict[str, float] | None = None

    def owns(self, candidates: Sequence[dict[str, Any]]) -> bool:
        """Whether these are its candidates, but for what rounding may do."""
        own = self.candidates
        if own is None:
            return True
        near = _TOLERANCE * max(map(abs, own.values()))
        same = [
            abs(candidate["score"] - own[candidate["item_id"]]) <= near
            for candidate in candidates
            if candidate["item_id"] in own
        ]
        return len(candidates) == len(own) and all(same) and len(same) >= len(own) - _REPLACED


@dataclass(frozen=True)
class Crowd:
    """leaving, hurried: shares of the requests   max_stay_ms: before who leaves has left"""

    url: str
    callers: Sequence[Caller]
    top_k: int
    num_requests: int
    num_connections: int
    cpu: int | None
    leaving: float = 0.0
    hurried: float = 0.0
    max_stay_ms: float = 10.0
    max_deadline_ms: int = 20
    seed: int = 0


@dataclass
class Crowded:
    """What became of the requests, by outcome, and the first few wrong answers."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_wrong(self) -> int:
        """Answers that were not those to their questions."""
        return sum(number for outcome, number in self.outcomes.items() if outcome.startswith("wrong"))

    @property
    def num_failed(self) -> int:
        """Requests that got no answer, or an error of the service's own."""
        bad = ("http 5", "connection lost", "never answered")
        return sum(number for outcome, number in self.outcomes.items() if outcome.startswith(bad))


def run_crowd(crowd: Crowd, progress: Any = None, meanwhile: Callable[[], None] = lambda: None) -> Crowded:
    """In a process of its own.   progress: a shared integer, the number of requests begun"""
    return in_own_process(gather, crowd, progress, cpu=crowd.cpu, meanwhile=meanwhile)


def gather(crowd: Crowd, progress: Any = None) -> Crowded:
    """Process entry."""
    return _Gathering(crowd, progress).run()


def judge(reply: Reply, caller: Caller, request_id: str) -> str:
    """The outcome of an answer: `answered`, `popular (reason)`, `http 429`, or `wrong: …`."""
    answer = orjson.loads(reply.body)
    if answer.get("request_id") != request_id:
        return "wrong: the answer to another request"
    if reply.status != 200:
        return f"http {reply.status}"
    if answer["user_id"] != caller.user_id:
        return "wrong: another user's answer"
    if answer["route"] == "popular":
        return f"popular ({answer.get('reason')})"
    return "answered" if caller.owns(answer["candidates"]) else "wrong: another user's candidates"


class _Gathering:
    def __init__(self, crowd: Crowd, progress: Any) -> None:
        self.crowd, self.progress = crowd, progress
        self.chance = random.Random(crowd.seed)
        self.result = Crowded()
        self.begun = 0
        self.poll = select.epoll()
        self.under_way: dict[int, tuple[RawConnection, int, Caller]] = {}  # descriptor -> …, request number
        self.leaves: list[tuple[float, int, int]] = []  # (when, request number, descriptor)
        self.bodies = [
            b'{"user_id":"%b","top_k":%d}' % (caller.user_id.encode(), crowd.top_k)
            for caller in crowd.callers
        ]

    def run(self) -> Crowded:
        began = last = time.monotonic()
        for _ in range(min(self.crowd.num_connections, self.crowd.num_requests)):
            connection = RawConnection(self.crowd.url)
            self.poll.register(connection.socket, select.EPOLLIN)
            self._ask(connection)
        while self.under_way:
            wait = max(0.0, self.leaves[0][0] - time.monotonic()) if self.leaves else 1.0
            events = self.poll.poll(wait)
            for descriptor, _ in events:
                self._receive(descriptor)
            self._let_leave()
            if events:
                last = time.monotonic()
            elif time.monotonic() - last > _STALLED_S:
                self.result.outcomes["never answered"] += len(self.under_way)
                break
        self.result.seconds = time.monotonic() - began
        return self.result

    def _ask(self, connection: RawConnection) -> None:
        crowd, chance = self.crowd, self.chance
        if self.begun == crowd.num_requests:
            self.poll.unregister(connection.socket)
            connection.close()
            return
        number, self.begun = self.begun, self.begun + 1
        if self.progress is not None and number % 64 == 0:
            self.progress.value = number
        which = chance.randrange(len(crowd.callers))
        headers = {"X_Request_ID": f"r{number}"}
        drawn = chance.random()
        if drawn < crowd.hurried:
            headers["X_Deadline_Ms"] = str(chance.randint(1, crowd.max_deadline_ms))
        descriptor = connection.socket.fileno()
        self.under_way[descriptor] = connection, number, crowd.callers[which]
        try:
            connection.send(recall_bytes(crowd.url, self.bodies[which], **headers))
        except OSError:
            self._renew(descriptor, "connection lost")
            return
        if 1 - drawn <= crowd.leaving:
            leave_at = time.monotonic() + chance.random() * crowd.max_stay_ms / 1000
            heapq.heappush(self.leaves, (leave_at, number, descriptor))

    def _receive(self, descriptor: int) -> None:
        if descriptor not in self.under_way:
            return
        connection, number, caller = self.under_way[descriptor]
        try:
            reply = connection.receive()
        except OSError:
            self._renew(descriptor, "connection lost")
            return
        if reply is None:
            return
        outcome = judge(reply, caller, f"r{number}")
        if outcome.startswith("wrong") and len(self.result.wrong) < 10:
            self.result.wrong.append(f"{outcome}: asked for {caller.user_id}: {reply.body[:300]!r}")
        if reply.closes:
            self._renew(descriptor, outcome)
            return
        self.result.outcomes[outcome] += 1
        del self.under_way[descriptor]
        self._ask(connection)

    def _let_leave(self) -> None:
        now = time.monotonic()
        while self.leaves and self.leaves[0][0] <= now:
            _, number, descriptor = heapq.heappop(self.leaves)
            if descriptor in self.under_way and self.under_way[descriptor][1] == number:
                connection = self.under_way[descriptor][0]
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._renew(descriptor, "left")

    def _renew(self, descriptor: int, outcome: str) -> None:
        connection = self.under_way.pop(descriptor)[0]
        self.result.outcomes[outcome] += 1
        self.poll.unregister(connection.socket)
        connection.renew()
        self.poll.register(connection.socket, select.EPOLLIN)
        self._ask(connection)
