"""Rolling restarts behind a proxy, under load: two services take turns, and no request may fail.

Each restart is a SIGTERM, the wait for the end, and a start on the same port; the other service is ready all
the while. They share one Redis. A restart counts only if requests were sent from before its SIGTERM until the
service was back. What makes it work is that readiness turns 503 before the listener closes
(`--shutdown-delay-s`), for longer than the proxy takes to notice.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.generator import MAX_CONNECTIONS, Samples
from loadtest.histogram import percentiles
from loadtest.probe import ProbeSettings, draw_up, run_generator
from loadtest.seeding import seed_users
from loadtest.served import Served, started_service
from loadtest.stress.balancer import CHECK_MS, started_balancer
from loadtest.stress.expected_answers import PREFIXES, shared_histories
from loadtest.stress.outcome import Options, check
from loadtest.stress.redis_process import RedisProcess, free_port
from service.engine import set_threads

NAME = "restarts"
_SHUTDOWN_DELAY_S = 1.0
_NOTICED_S = 10 * CHECK_MS / 1e3
"""After a start, until the proxy sends requests there."""
_EXIT_LIMIT_S = 15.0


@dataclass(frozen=True)
class Plan:
    """rate: requests/s   stretch_s: how long one generator sends; restarts fall inside such stretches"""

    num_restarts: int = 50
    rate: float = 100.0
    stretch_s: float = 60.0
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 200
    top_k: int = 20


SHORT = Plan(num_restarts=1, rate=40, stretch_s=8.0, num_items=300, dim=16, num_users=20)


def run(options: Options) -> dict[str, Any]:
    """50 restarts at 100 requests/s; short: one at 20."""
    return restart_figures(SHORT if options.short else Plan(), options)


def restart_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    with tempfile.TemporaryDirectory(prefix="t2diff-restarts-") as name, ExitStack() as stack:
        folder = Path(name)
        set_threads(1)  # with two on a busy machine the bundle takes ten times as long
        store = Store(folder / "bundles")
        store.publish(generate_bundle(store, num_items=plan.num_items, dim=plan.dim, item_prefix=PREFIXES[0]))
        redis = stack.enter_context(RedisProcess(folder / "redis"))
        replicas = [Replica(folder / name, store.url, redis.url) for name in ("left", "right")]
        for replica in replicas:
            stack.enter_context(replica.running())
        seed_users(replicas[0].url, shared_histories(plan.num_users, plan.num_items), lambda done: None)
        proxy = stack.enter_context(started_balancer([replica.port for replica in replicas], folder))
        options.say(f"{plan.num_restarts} restarts behind {proxy.kind}, {plan.rate:g} requests/s")
        time.sleep(_NOTICED_S)
        return {
            "plan": vars(plan),
            "proxy": proxy.kind,
            **_Stress(plan, options, replicas, proxy.url).figures(),
        }


class _Stress:
    def __init__(self, plan: Plan, options: Options, replicas: list[Replica], url: str) -> None:
        self.plan, self.options, self.replicas, self.url = plan, options, replicas, url
        self.restarts: list[Restart] = []
        self._loaded = threading.Event()  # the first request of the present stretch was answered

    def figures(self) -> dict[str, Any]:
        stretches: list[Samples] = []
        while len(self.restarts) < self.plan.num_restarts:
            stretches.append(self._stretch(len(stretches)))
            self.options.say(f"{len(self.restarts)} restarts, {_num_failed(stretches)} failed requests")
        return summarise(stretches, self.plan.num_restarts, self.restarts)

    def _stretch(self, number: int) -> Samples:
        plan = self.plan
        settings = ProbeSettings(
            url=self.url,
            duration_s=plan.stretch_s,
            warmup_s=0.0,
            num_users=plan.num_users,
            top_k=plan.top_k,
            arrivals="constant",
            timeout_ms=30_000.0,
            max_connections=MAX_CONNECTIONS,
            seed=number,
            pin_cpu=None,
        )
        self._loaded.clear()
        with ThreadPoolExecutor(1) as pool:
            restarting = pool.submit(self._restart_while_there_is_load)
            samples = run_generator(draw_up(settings, plan.rate), self._progress)
            self._loaded.set()
            restarting.result()
        return samples

    def _progress(self, sent: int, answered: int, of: int) -> None:
        if answered:
            self._loaded.set()

    def _restart_while_there_is_load(self) -> None:
        """As many as fit, one at least, by how long the longest took so far."""
        self._loaded.wait()
        ends_at = time.monotonic() + self.plan.stretch_s - 1.0
        while len(self.restarts) < self.plan.num_restarts:
            replica = self.replicas[len(self.restarts) % len(self.replicas)]
            self.restarts.append(replica.restart())
            time.sleep(_NOTICED_S)
            if time.monotonic() + max(each.back - each.began for each in self.restarts) > ends_at:
                break


class Restart(NamedTuple):
    """When SIGTERM was sent, the service ended and was back (time.monotonic), and its exit status."""

    began: float
    ended: float
    back: float
    status: int


class Replica:
    """A service that is ended and started again on its port."""

    def __init__(self, folder: Path, bundles: str, redis_url: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._bundles = folder, bundles
        self._options = ["--request-time", "none", "--redis-url", redis_url]
        self._options += ["--shutdown-delay-s", str(_SHUTDOWN_DELAY_S)]
        self._now: ExitStack | None = None
        self._served: Served | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Started until the end of the block, restarts in between."""
        self._start()
        try:
            yield
        finally:
            self._end()

    def restart(self) -> Restart:
        """SIGTERM, the wait for the end, a start."""
        assert self._served is not None
        began = time.monotonic()
        self._end()
        ended, status = time.monotonic(), self._served.process.returncode
        self._start()
        return Restart(began, ended, time.monotonic(), status)

    def _start(self) -> None:
        self._now = ExitStack()
        cpus = sorted(os.sched_getaffinity(0))
        self._served = self._now.enter_context(
            started_service(
                NAME, self._bundles, options=self._options, cpus=cpus, folder=self._folder, port=self.port
            )
        )

    def _end(self) -> None:
        if self._now is not None:
            self._now.close()


def summarise(stretches: list[Samples], num_restarts: int, restarts: Sequence[Restart]) -> dict[str, Any]:
    """The figures, and what they are held to."""
    status = np.concatenate([samples.status for samples in stretches])
    seconds = np.concatenate([samples.ended - samples.intended for samples in stretches])
    found = percentiles(seconds)
    slowest = max((each.ended - each.began for each in restarts), default=None)
    loads = [(one.started + one.sent[0], one.started + one.sent[-1]) for one in stretches]
    uncovered = sum(
        not any(first <= each.began and each.back <= last for first, last in loads) for each in restarts
    )
    return {
        "num_restarts": len(restarts),
        "num_restarts_not_under_load": uncovered,
        "num_requests": len(status),
        "num_failed": _num_failed(stretches),
        "failures": dict(Counter(str(each) for each in status[status != 200].tolist())),
        "num_fallbacks": int(sum(samples.degraded.sum() for samples in stretches)),
        "p50_ms": found and found.p50_ms,
        "p99_ms": found and found.p99_ms,
        "exit_seconds_max": slowest,
        "checks": [
            check("restarts under load missing", num_restarts - len(restarts) + uncovered, 0),
            check("failed requests", _num_failed(stretches) if len(status) else None, 0),
            check("services that did not end by themselves", sum(each.status != 0 for each in restarts), 0),
            check("seconds until a service ended", slowest, _EXIT_LIMIT_S),
        ],
    }


def _num_failed(stretches: list[Samples]) -> int:
    return sum(int((samples.status != 200).sum()) for samples in stretches)
