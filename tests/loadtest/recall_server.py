"""A real HTTP server that speaks the recall service's contract and misbehaves on request.

Run as `python recall_server.py`; prints its port. `POST /behave` sets how the next answers come, and
starts counting requests anew; `GET /posted` returns the events received, request by request.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field, replace

from aiohttp import web
from aiohttp.typedefs import Handler


@dataclass(frozen=True)
class Behaviour:
    """How to answer; times in milliseconds, request numbers from 1."""

    delay_ms: float = 0.0  # without holding up others
    work_ms: float = 0.0  # one request at a time
    stall_at: int = 0  # this request holds up the whole server for `stall_ms`
    stall_ms: float = 0.0
    fail_first: int = 0  # so many requests get `fail_status`
    fail_status: int = 503
    timing: str = "store;dur=0.5, queue;dur=1, tower;dur=8, search;dur=2, total;dur=12, batch;desc=4"
    answer: dict = field(default_factory=dict)  # fields to put over the usual answer
    num_candidates: int = -1  # -1: as many as asked
    ready: bool = True
    refuse_events: bool = False
    key: str = ""  # what callers must bring; nothing: anybody may ask


class RecallServer:
    """The state between requests."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.num_requests = 0
        self.users: list[str] = []
        self.posted: list[list[dict]] = []
        self.one_at_a_time = asyncio.Lock()

    async def behave(self, request: web.Request) -> web.Response:
        self.behaviour = replace(Behaviour(), **await request.json())
        self.num_requests, self.users, self.posted = 0, [], []
        return web.json_response({})

    @web.middleware
    async def door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        free = request.path in ("/behave", "/seen", "/v2/health/ready") or not self.behaviour.key
        if not free and request.headers.get("Authorization") != f"Bearer {self.behaviour.key}":
            return web.json_response({}, status=401)
        return await handler(request)

    async def recall(self, request: web.Request) -> web.Response:
        question = await request.json()
        now = self.behaviour
        self.num_requests += 1
        number = self.num_requests
        self.users.append(question["user_id"])
        if number == now.stall_at:
            time.sleep(now.stall_ms / 1e3)
        if now.delay_ms:
            await asyncio.sleep(now.delay_ms / 1e3)
        if now.work_ms:
            async with self.one_at_a_time:
                await asyncio.sleep(now.work_ms / 1e3)
        if number <= now.fail_first:
            return web.json_response({}, status=now.fail_status, headers={"Location": "/elsewhere"})
        count = question["top_k"] if now.num_candidates < 0 else now.num_candidates
        answer = {
            "request_id": "r",
            "user_id": question["user_id"],
            "bundle": "20261122T031500Z-1a2b3c4d",
            "route": "t2diff",
            "degraded": False,
            "candidates": [{"item_id": str(item), "score": -float(item)} for item in range(count)],
        }
        return web.json_response(answer | now.answer, headers={"Server-Timing": now.timing})

    async def events(self, request: web.Request) -> web.Response:
        if self.behaviour.refuse_events:
            return web.json_response({"detail": "item_id: too long"}, status=422)
        events = await request.json()
        self.posted.append(events)
        return web.json_response({"request_id": "r", "accepted": len(events)})

    async def seen(self, request: web.Request) -> web.Response:
        return web.json_response({"users": self.users, "posted": self.posted})

    async def ready(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.behaviour.ready else 503)

    async def model(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "bundle": "20261122T031500Z-1a2b3c4d",
                "model": "t2diff",
                "device": "cpu",
                "index": "flat",
                "num_items": 50,
            }
        )


async def main() -> None:
    server = RecallServer()
    app = web.Application(client_max_size=2**24, middlewares=[server.door])
    app.add_routes(
        [
            web.post("/behave", server.behave),
            web.get("/seen", server.seen),
            web.post("/recall", server.recall),
            web.post("/events", server.events),
            web.get("/v2/health/ready", server.ready),
            web.get("/v2/models/recall", server.model),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent goes


if __name__ == "__main__":
    asyncio.run(main())
