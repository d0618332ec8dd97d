"""Slow and huge clients beside normal load: what 300 of them do to everybody else's requests, and to memory.

Rounds with and without them take turns, so that whatever else the machine does weighs on both alike. At the
end one user gets a million events: what is kept of them is bounded, and so is the memory that they take.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import orjson
import psutil

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.generator import MAX_CONNECTIONS, Samples
from loadtest.histogram import percentiles
from loadtest.probe import ProbeSettings, draw_up, run_generator
from loadtest.seeding import seed_users
from loadtest.served import Served, started_service
from loadtest.stress.expected_answers import PREFIXES, shared_histories
from loadtest.stress.hostile_clients import CLIENTS, annoy
from loadtest.stress.outcome import Options, check

NAME = "clients"
P99_RATIO_LIMIT = 2.0
RSS_LIMIT_MIB = 50.0
_SAMPLE_S = 0.1
_EVENTS_AT_ONCE = 1_000
_FIRST_TIME = 1_600_000_000


@dataclass(frozen=True)
class Plan:
    """rounds: with and without, of each   rate: normal requests/s   share: of the 300 hostile clients"""

    rounds: int = 6
    round_s: float = 20.0
    warmup_s: float = 3.0
    rate: float = 100.0
    share: float = 1.0
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 200
    num_events: int = 1_000_000


SHORT = Plan(
    rounds=1,
    round_s=2.0,
    warmup_s=1.0,
    rate=30.0,
    share=0.1,
    num_items=300,
    dim=16,
    num_users=20,
    num_events=20_000,
)


@dataclass
class Round:
    """One round.   peak_rss: the most that the service held in it, bytes   connected: by kind of client"""

    samples: Samples
    peak_rss: int
    connected: dict[str, int] = field(default_factory=dict)


def run(options: Options) -> dict[str, Any]:
    """300 hostile clients beside 100 requests/s; short: 30 beside 30."""
    return clients_figures(SHORT if options.short else Plan(), options)


def clients_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    with tempfile.TemporaryDirectory(prefix="t2diff-clients-") as folder:
        store = Store(Path(folder) / "bundles")
        store.publish(generate_bundle(store, num_items=plan.num_items, dim=plan.dim, item_prefix=PREFIXES[0]))
        serve_options = ["--redis-fsync", "no", "--redis-read-timeout-ms", "1000"]
        cpus = sorted(os.sched_getaffinity(0))
        service = Path(folder) / "service"
        with started_service(NAME, store.url, options=serve_options, cpus=cpus, folder=service) as served:
            seed_users(served.url, shared_histories(plan.num_users, plan.num_items), lambda done: None)
            _round(served, plan, hostile=False)  # not counted: the service comes to its working size
            quiet, hostile = [], []
            for number in range(plan.rounds):
                quiet.append(_round(served, plan, hostile=False))
                hostile.append(_round(served, plan, hostile=True))
                p99s = f"p99 {_p99([quiet[-1]], plan):.1f} ms without, {_p99([hostile[-1]], plan):.1f} with"
                options.say(f"round {number + 1}: {p99s}, {sum(hostile[-1].connected.values())} connections")
            flood = _flood_of_events(served, plan)
            options.say(f"{plan.num_events} events of one user: {flood}")
            return _report(plan, quiet, hostile, flood)


def _round(served: Served, plan: Plan, *, hostile: bool) -> Round:
    settings = ProbeSettings(
        url=served.url,
        duration_s=plan.round_s,
        warmup_s=plan.warmup_s,
        num_users=plan.num_users,
        top_k=20,
        arrivals="constant",
        timeout_ms=10_000.0,
        max_connections=MAX_CONNECTIONS,
        seed=0,
        pin_cpu=None,
    )
    with _hostile(served.url, plan.share if hostile else 0.0) as connected, _watched(served) as peak:
        samples = run_generator(draw_up(settings, plan.rate), lambda sent, answered, of: None)
    return Round(samples, max(peak), connected)


@contextmanager
def _hostile(url: str, share: float) -> Iterator[dict[str, int]]:
    """The clients run meanwhile; what they did is put into the dict at the end."""
    connected: dict[str, int] = {}
    if share == 0:
        yield connected
        return
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=annoy, args=(url, share, stop, sender), daemon=True)
    process.start()
    receiver.recv()  # they begin: starting a process is not what is measured
    try:
        yield connected
        stop.set()
        if receiver.poll(30):
            connected.update(receiver.recv())
    finally:
        process.kill()
        process.join()


@contextmanager
def _watched(served: Served) -> Iterator[list[int]]:
    """The service's resident memory, read again and again."""
    process = psutil.Process(served.process.pid)
    read, ended = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_S):
            read.append(process.memory_info().rss)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    yield read
    ended.set()
    watching.join()


def _flood_of_events(served: Served, plan: Plan) -> dict[str, Any]:
    """One user's events, many at once: how many were taken, and what service and Redis hold more for it."""
    before, accepted = _resident(served), 0
    for start in range(0, plan.num_events, _EVENTS_AT_ONCE):
        events = [
            {
                "user_id": "flood",
                "item_id": f"{PREFIXES[0]}-{n % plan.num_items}",
                "timestamp": _FIRST_TIME + n,
            }
            for n in range(start, start + _EVENTS_AT_ONCE)
        ]
        request = Request(f"{served.url}/events", orjson.dumps(events), {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as response:
            accepted += orjson.loads(response.read())["accepted"]
    gained = [(now - then) / 2**20 for now, then in zip(_resident(served), before, strict=True)]
    return {"accepted": accepted, "service_mib": gained[0], "redis_mib": gained[1]}


def _resident(served: Served) -> tuple[int, int]:
    """Bytes of the service and of its Redis."""
    process = psutil.Process(served.process.pid)
    redis = sum(child.memory_info().rss for child in process.children(recursive=True))
    return process.memory_info().rss, redis


def _report(plan: Plan, quiet: list[Round], hostile: list[Round], flood: dict[str, Any]) -> dict[str, Any]:
    ratio = _p99(hostile, plan) / _p99(quiet, plan)
    failed = sum(int((one.samples.status != 200).sum()) for one in [*quiet, *hostile])
    degraded = sum(int(one.samples.degraded.sum()) for one in hostile)
    grown_mib = (max(one.peak_rss for one in hostile) - max(one.peak_rss for one in quiet[:1])) / 2**20
    connected = {name: sum(one.connected.get(name, 0) for one in hostile) for name in CLIENTS}
    return {
        "plan": vars(plan),
        "hostile_clients": {name: round(plan.share * count) for name, (_, count, _) in CLIENTS.items()},
        "hostile_connections": connected,
        "num_requests": sum(len(one.samples.status) for one in [*quiet, *hostile]),
        "num_not_200": failed,
        "num_degraded": degraded,
        "quiet": _latency(quiet, plan),
        "hostile": _latency(hostile, plan),
        "p99_ratio": ratio,
        "p99_ms_by_round_quiet": [round(_p99([one], plan), 1) for one in quiet],
        "p99_ms_by_round_hostile": [round(_p99([one], plan), 1) for one in hostile],
        "peak_rss_mib_quiet": [round(one.peak_rss / 2**20, 1) for one in quiet],
        "peak_rss_mib_hostile": [round(one.peak_rss / 2**20, 1) for one in hostile],
        "events_of_one_user": flood,
        "checks": [
            check("normal requests not answered 200", failed, 0),
            check("p99 with hostile clients over p99 without", ratio, P99_RATIO_LIMIT),
            check("resident memory gained (MiB)", grown_mib, RSS_LIMIT_MIB),
            check("kinds of client that never connected", sum(not n for n in connected.values()), 0),
            check("events of one user that were not taken", plan.num_events - flood["accepted"], 0),
            check("memory of the service for them (MiB)", flood["service_mib"], RSS_LIMIT_MIB),
            check("memory of Redis for them (MiB)", flood["redis_mib"], RSS_LIMIT_MIB),
        ],
    }


def _measured(rounds: list[Round], plan: Plan) -> np.ndarray:
    """Seconds from the intended send to the whole answer, after the warm-ups."""
    return np.concatenate(
        [(one.samples.ended - one.samples.intended)[one.samples.intended >= plan.warmup_s] for one in rounds]
    )


def _p99(rounds: list[Round], plan: Plan) -> float:
    found = percentiles(_measured(rounds, plan))
    return float("nan") if found is None else found.p99_ms


def _latency(rounds: list[Round], plan: Plan) -> dict[str, Any]:
    found = percentiles(_measured(rounds, plan))
    assert found is not None
    names = ("count", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    return {name: getattr(found, name) for name in names}
