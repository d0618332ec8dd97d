"""The sending side of a load test: an asyncio client that runs alone in its own process.

It asks `POST /recall` at the intended times and notes, for every request, when it was meant to go, when
it went, when its whole answer was there, and what the answer said about itself. It judges nothing.
"""

from __future__ import annotations

import asyncio
import gc
import math
import selectors
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import aiohttp
import numpy as np
import orjson
import psutil
from yarl import URL

STAGES = ("store", "queue", "tower", "search", "total")
TIMEOUT, CONNECTION_FAILED, NOT_A_RECALL_ANSWER, WRONG_ANSWER = -1, -2, -3, -4  # in `status`, beside HTTP's
MAX_CONNECTIONS = 900  # select() takes file descriptors below 1,024
_START_DELAY_S = 0.2
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Load:
    """One probe, drawn up in advance."""

    url: str  # the service, without path
    offsets_s: np.ndarray  # (n,) intended send times from the start
    users: np.ndarray  # (n,) numbers of the seeded users to ask for
    top_k: int
    timeout_s: float  # counted from the actual send
    max_connections: int
    pin_cpu: int | None  # the generator's CPU, None = wherever the system puts it
    accepts: Callable[[dict[str, Any]], bool] | None = None  # what an answer must be beside well-formed
    headers: Mapping[str, str] = field(default_factory=dict)  # of every request, such as a key
    together: Barrier | None = None  # loads that start at the same moment share one


@dataclass(frozen=True)
class Samples:
    """What happened to each of the n requests; all times in seconds from the start of the schedule."""

    intended: np.ndarray  # (n,)
    sent: np.ndarray  # (n,)
    ended: np.ndarray  # (n,)
    status: np.ndarray  # (n,) int16: HTTP status, or one of the negative outcomes above
    degraded: np.ndarray  # (n,) bool
    short: np.ndarray  # (n,) bool: fewer candidates than asked, and no stated shortfall
    stages_s: (
        np.ndarray
    )  # (n, len(STAGES)) NaN where the answer does not say; tower and search: the whole batch
    batch_size: np.ndarray  # (n,) int32, 0 where the answer does not say
    route: np.ndarray  # (n,) int16 into `names`, -1 = none
    bundle: np.ndarray  # (n,) int16 into `names`, -1 = none
    names: tuple[str, ...]
    waited_for_connection: int  # requests due while every allowed connection was taken
    cpu_share: float  # of one core, used by the generator itself
    started: float = 0.0  # when the schedule began, on the machine's time.monotonic()


def user_id(number: int) -> str:
    """The id of a load test user; `seed` writes these and `run` asks for them. number: from 1."""
    return f"loadtest-user-{number:06d}"


def parse_server_timing(header: str) -> dict[str, float]:
    """The numbers in a Server-Timing header (W3C): entry name -> its `dur` in ms, or else its `desc`.

    Entries without a finite number of either kind are left out.
    """
    numbers: dict[str, float] = {}
    for entry in header.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        values = {
            key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parameters)
        }
        try:
            number = float(values.get("dur", values.get("desc", "")).strip('"'))
        except ValueError:
            continue
        if math.isfinite(number):
            numbers[name] = number
    return numbers


def generate(load: Load, results: Connection) -> None:
    """Process entry: run the load; send (sent, answered) counts as they grow, and the Samples last."""
    if load.pin_cpu is not None:
        psutil.Process().cpu_affinity([load.pin_cpu])
    gc.freeze()  # imports never need collecting again: keeps collections short

    # epoll rounds timers up to whole milliseconds; select() does not, and so sends closer to the time.
    def precise_loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        results.send(runner.run(_Client(load, results).run()))


class _Client:
    def __init__(self, load: Load, results: Connection) -> None:
        n = len(load.offsets_s)
        self.load = load
        self.url = URL(f"{load.url}/recall")
        self.results = results
        self.sent = np.full(n, np.nan)
        self.ended = np.full(n, np.nan)
        self.status = np.zeros(n, np.int16)
        self.degraded = np.zeros(n, bool)
        self.short = np.zeros(n, bool)
        self.stages_s = np.full((n, len(STAGES)), np.nan)
        self.batch_size = np.zeros(n, np.int32)
        self.route = np.full(n, -1, np.int16)
        self.bundle = np.full(n, -1, np.int16)
        self.names: dict[str, int] = {}
        self.num_sent = self.num_ended = self.waited_for_connection = 0
        self.start = 0.0

    async def run(self) -> Samples:
        load = self.load
        session = aiohttp.ClientSession(
            # Shorter than uvicorn's 5 s, so that no request meets a connection that is just being closed.
            connector=aiohttp.TCPConnector(limit=load.max_connections, keepalive_timeout=2.0),
            timeout=aiohttp.ClientTimeout(total=load.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json", **load.headers},
        )
        cpu_before, wall_before = time.process_time(), time.monotonic()
        async with session:
            if load.together is not None:
                load.together.wait(_START_TIMEOUT_S)
            self.start = time.monotonic() + _START_DELAY_S
            progress = asyncio.create_task(self._tell_progress())
            async with asyncio.TaskGroup() as requests:
                for number, offset in enumerate(load.offsets_s.tolist()):
                    # Late or not, give the loop a turn: answers must be read while requests go out.
                    await asyncio.sleep(max(0.0, self.start + offset - time.monotonic()))
                    requests.create_task(self._ask(session, number))
            progress.cancel()
        busy = (time.process_time() - cpu_before) / (time.monotonic() - wall_before)
        return Samples(
            intended=load.offsets_s,
            sent=self.sent,
            ended=self.ended,
            status=self.status,
            degraded=self.degraded,
            short=self.short,
            stages_s=self.stages_s,
            batch_size=self.batch_size,
            route=self.route,
            bundle=self.bundle,
            names=tuple(self.names),
            waited_for_connection=self.waited_for_connection,
            cpu_share=busy,
            started=self.start,
        )

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        user = user_id(int(self.load.users[number]))
        body = orjson.dumps({"user_id": user, "top_k": self.load.top_k})
        if self.num_sent - self.num_ended >= self.load.max_connections:
            self.waited_for_connection += 1
        self.num_sent += 1
        self.sent[number] = time.monotonic() - self.start
        answer, timing = b"", ""
        try:
            async with session.post(self.url, data=body, allow_redirects=False) as response:
                answer = await response.read()
                status, timing = response.status, response.headers.get("Server-Timing", "")
        except TimeoutError:
            status = TIMEOUT
        except (aiohttp.ClientError, OSError):
            status = CONNECTION_FAILED
        self.ended[number] = time.monotonic() - self.start
        self.num_ended += 1
        if status == 200:
            status = self._note_answer(number, answer, user)
        self.status[number] = status
        self._note_timing(number, parse_server_timing(timing))

    def _note_answer(self, number: int, body: bytes, user: str) -> int:
        """Keep what a 200 says; 200, or why it is not an answer to this question."""
        try:
            answer = orjson.loads(body)
            if answer["user_id"] != user:
                return NOT_A_RECALL_ANSWER
            reason = answer.get("reason")  # only there when the fallback answered
            self.route[number] = self._name(f"{answer['route']} ({reason})" if reason else answer["route"])
            self.bundle[number] = self._name(answer["bundle"])
            self.degraded[number] = answer["degraded"]
            self.short[number] = len(answer["candidates"]) < self.load.top_k and not answer.get("shortfall")
        except (ValueError, KeyError, TypeError):
            return NOT_A_RECALL_ANSWER
        accepts = self.load.accepts
        return 200 if accepts is None or accepts(answer) else WRONG_ANSWER

    def _name(self, name: str | None) -> int:
        return -1 if name is None else self.names.setdefault(name, len(self.names))

    def _note_timing(self, number: int, timing: dict[str, float]) -> None:
        for column, stage in enumerate(STAGES):
            self.stages_s[number, column] = timing.get(stage, math.nan) / 1e3
        self.batch_size[number] = int(timing.get("batch", 0))

    async def _tell_progress(self) -> None:
        while True:
            self.results.send((self.num_sent, self.num_ended))
            await asyncio.sleep(0.2)
