"""A million requests, a fifth of whose callers leave at a random moment: nobody gets what is another's.

The users' candidates are asked for one at a time first; then every answer in the crowd must be made of its
own user's. Some send a deadline of a few milliseconds, so that reads, places in the queue and batches are
given up inside the service as well.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from loadtest.errors import LoadtestError
from loadtest.generator import user_id
from loadtest.seeding import seed_users, sequences_from_items
from loadtest.served import Served
from loadtest.stress.crowd import Caller, Crowd, run_crowd
from loadtest.stress.ground import generator_cpu, service_on
from loadtest.stress.outcome import Options, check
from loadtest.stress.raw_connection import RawConnection, recall_bytes

NAME = "cancel"


@dataclass(frozen=True)
class Plan:
    num_requests: int = 1_000_000
    num_connections: int = 64
    leaving: float = 0.2
    hurried: float = 0.1
    num_users: int = 200
    num_items: int = 2_000
    dim: int = 16
    top_k: int = 20


SHORT = Plan(num_requests=2_000, num_connections=32, num_users=20, num_items=300)


def run(options: Options) -> dict[str, Any]:
    """1,000,000 requests; short: 2,000."""
    return cancel_figures(SHORT if options.short else Plan(), options)


def cancel_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    # Few steps, for what is tried out lies around the tower; single precision, so that who shares a batch is
    # not seen in the answer.
    service = ["--num-inference-steps", "2", "--sampler", "ddim", "--tower-engine", "exact"]
    service += ["--request-time", "none", "--redis-read-timeout-ms", "1000", "--breaker-threshold", "1000"]
    with (
        tempfile.TemporaryDirectory(prefix="t2diff-cancel-") as folder,
        service_on(NAME, Path(folder), num_items=plan.num_items, dim=plan.dim, options=service) as (
            served,
            _,
        ),
    ):
        callers = _callers(served, plan)
        crowd = Crowd(
            served.url,
            callers,
            plan.top_k,
            plan.num_requests,
            plan.num_connections,
            cpu=generator_cpu(),
            leaving=plan.leaving,
            hurried=plan.hurried,
        )
        process = psutil.Process(served.process.pid)
        before = process.memory_info().rss
        told = [time.monotonic()]

        def say() -> None:
            if time.monotonic() - told[0] > 30:
                told[0] = time.monotonic()
                options.say(f"resident {process.memory_info().rss / 2**20:.0f} MiB")

        crowded = run_crowd(crowd, meanwhile=say)
        after = process.memory_info().rss
    outcomes = crowded.outcomes
    return {
        "plan": vars(plan),
        "num_requests": sum(outcomes.values()),
        "outcomes": dict(outcomes.most_common()),
        "requests_per_s": round(sum(outcomes.values()) / crowded.seconds, 1),
        "wrong": crowded.wrong,
        "rss_mib_before": round(before / 2**20, 1),
        "rss_mib_after": round(after / 2**20, 1),
        "checks": [
            check("answers for another user", crowded.num_wrong, 0),
            check("requests that were left without an answer or failed", crowded.num_failed, 0),
            check("answers of the model missing", plan.num_requests // 2 - outcomes["answered"], 0),
            check("requests missing", plan.num_requests - sum(outcomes.values()), 0),
            check(
                "callers missing who left", int(0.5 * plan.leaving * plan.num_requests) - outcomes["left"], 0
            ),
            check("pairs of users whom their candidates do not tell apart", _alike(callers), 0),
        ],
    }


def _callers(served: Served, plan: Plan) -> list[Caller]:
    items = [f"item-{number}" for number in range(plan.num_items)]
    histories = sequences_from_items(items, num_users=plan.num_users, events_per_user=40, seed=1)
    seed_users(served.url, histories, lambda done: None)
    return [
        Caller(
            user_id(number),
            {one["item_id"]: one["score"] for one in _ask(served.url, user_id(number), plan.top_k)},
        )
        for number in range(1, plan.num_users + 1)
    ]


def _ask(url: str, user: str, top_k: int) -> list[dict[str, Any]]:
    """What the model gives this user while nobody else asks; patiently, for the first read connects."""
    request = recall_bytes(url, orjson.dumps({"user_id": user, "top_k": top_k}))
    for _ in range(20):
        connection = RawConnection(url)
        connection.socket.setblocking(True)
        connection.send(request)
        reply = None
        while reply is None:
            reply = connection.receive()
        connection.close()
        answer = orjson.loads(reply.body)
        if answer.get("route") == "t2diff" and not answer["degraded"]:
            candidates: list[dict[str, Any]] = answer["candidates"]
            return candidates
        time.sleep(0.05)
    raise LoadtestError(f"{user} should be answered by the model, got {answer}")


def _alike(callers: list[Caller]) -> int:
    each = [
        (caller, [{"item_id": item, "score": score} for item, score in (caller.candidates or {}).items()])
        for caller in callers
    ]
    return sum(one.owns(theirs) for (one, _), (_, theirs) in itertools.permutations(each, 2))
