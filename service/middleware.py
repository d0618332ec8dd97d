"""The outermost layer of both HTTP apps, in plain ASGI: request id, clock, timings, last resort.

Plain ASGI because `BaseHTTPMiddleware` hides disconnects and costs more than the rest of the request.
Nothing here reads a body. An exception that nobody expected ends as a 500 problem, never as a closed
connection.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from service.callers import Caller
from service.errors import CONTENT_TYPE, problem, render
from service.metrics import Metrics
from service.trace import BeginTrace, Timings, Trace

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "t2diff"
MAX_REQUEST_ID_LENGTH = 128
ARM_HEADER = b"x-experiment-arm"
_HEADERS = frozenset({b"x-request-id", b"x-deadline-ms", b"content-length", b"content-type", ARM_HEADER})

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

logger = logging.getLogger("t2diff.request")


@dataclass(slots=True)
class RequestContext:
    """What is known of one request; handlers add to it, the middleware writes it out.

    started: `time.monotonic` seconds   headers: the few that the service reads
    bundle, fallback: what answered, and why if it was the fallback
    timings: stage -> seconds, in the order in which they are shown
    arm: of the running experiment   afterwards: what to do once the answer was sent
    caller: whose key came with it; None where none was asked for
    trace: None where nothing is traced
    """

    request_id: str
    started: float
    headers: dict[bytes, bytes]
    route: str = "other"
    bundle: str | None = None
    fallback: str | None = None
    timings: Timings = field(default_factory=Timings)
    batch_size: int | None = None
    arm: str | None = None
    caller: Caller | None = None
    trace: Trace | None = None
    afterwards: tuple[Callable[[], None], ...] = ()

    def stage(self, name: str, started: float) -> None:
        """For its trace: from `started` until now."""
        if self.trace is not None:
            self.trace.stage(name, started, time.monotonic())

    def server_timing(self, total_seconds: float) -> bytes:
        """The header's value, in milliseconds (W3C Server Timing)."""
        entries = [f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in self.timings.items()]
        entries.append(f"total;dur={total_seconds * 1000:.3f}")
        if self.batch_size is not None:
            entries.append(f'batch;desc="{self.batch_size}"')
        return ", ".join(entries).encode()


class RequestMiddleware:
    """Wraps an app; routes maps a path to the label under which it is counted."""

    def __init__(
        self,
        app: Application,
        *,
        metrics: Metrics,
        routes: dict[str, str],
        log_requests: str = "failed",
        serving: Callable[[], str | None] = lambda: None,
        begin_trace: BeginTrace | None = None,
    ) -> None:
        """serving: the present bundle, for log lines of requests that met none

        begin_trace: None where nothing is traced; health calls never are
        """
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._serving = serving
        self._begin_trace = begin_trace
        self._log_from_status = {"all": 100, "failed": 500, "none": 1000}[log_requests]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in _HEADERS}
        context = RequestContext(
            request_id=request_id_of(headers.get(b"x-request-id")),
            started=time.monotonic(),
            headers=headers,
            route=self._routes.get(scope["path"], "other"),
        )
        scope[SCOPE_KEY] = context
        status: int | None = None
        if self._begin_trace is not None and context.route != "health":
            asked = f"{_known_method(scope['method'])} {context.route}"
            context.trace = self._begin_trace(asked, scope["headers"], context.started)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._finish(context, message)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
            for begin in context.afterwards:
                begin()
        except Exception:
            context.bundle = context.bundle or self._serving()
            logger.exception("a request failed unexpectedly", extra=_named(context))
            if status is not None:
                raise
            await _send_internal_error(context, send_with_headers)
        finally:
            if context.trace is not None:
                _end_trace(context, context.trace, status)

    def _finish(self, context: RequestContext, message: Message) -> None:
        total = time.monotonic() - context.started
        status: int = message["status"]
        message.setdefault("headers", [])
        message["headers"] = [
            *message["headers"],
            (b"x-request-id", context.request_id.encode()),
            (b"server-timing", context.server_timing(total)),
        ]
        self._metrics.count_response(context.route, status)
        if context.route == "recall" and status == 200:
            self._metrics.observe_stage("total", total)
        if status >= self._log_from_status:
            context.bundle = context.bundle or self._serving()
            logger.info("request", extra=_log_fields(context, status, total))


def _log_fields(context: RequestContext, status: int, total: float) -> dict[str, Any]:
    fields: dict[str, Any] = {
        **_named(context),
        "route": context.route,
        "status": status,
        "total_ms": round(total * 1000, 3),
    }
    if context.caller is not None:
        fields["caller"] = context.caller.name
    if context.arm is not None:
        fields["arm"] = context.arm
    if context.fallback is not None:
        fields["fallback"] = context.fallback
    fields.update({f"{stage}_ms": round(seconds * 1000, 3) for stage, seconds in context.timings.items()})
    return fields


def _named(context: RequestContext) -> dict[str, Any]:
    named = {"request_id": context.request_id, "bundle": context.bundle}
    if context.trace is not None and context.trace.trace_id is not None:
        named["trace_id"] = context.trace.trace_id
    return named


def _known_method(method: str) -> str:
    """A method is what the caller says; only those that exist become names."""
    return method if method in _METHODS else "HTTP"


def _end_trace(context: RequestContext, trace: Trace, status: int | None) -> None:
    for stage, seconds in context.timings.items():
        started = context.timings.starts[stage]
        trace.stage(stage, started, started + seconds)
    trace.end(
        time.monotonic(),
        status,
        {
            "http.route": context.route,
            "t2diff.request_id": context.request_id,
            "t2diff.bundle": context.bundle,
            "t2diff.arm": context.arm,
            "t2diff.fallback": context.fallback,
            "t2diff.batch_size": context.batch_size,
            "t2diff.caller": None if context.caller is None else context.caller.name,
        },
    )


def request_id_of(given: bytes | None) -> str:
    """The caller's id when it is short, visible ASCII; a fresh one otherwise."""
    if given and len(given) <= MAX_REQUEST_ID_LENGTH and all(0x21 <= byte <= 0x7E for byte in given):
        return given.decode("ascii")
    return _fresh_ids.next()


class _RandomIds:
    """Random ids of 128 bits. The system is asked for many at a time, for asking costs more than the rest."""

    _AT_ONCE = 256

    def __init__(self) -> None:
        self._ready: list[str] = []

    def next(self) -> str:
        """32 hexadecimal digits that nobody can foretell."""
        if not self._ready:
            digits = os.urandom(16 * self._AT_ONCE).hex()
            self._ready = [digits[at : at + 32] for at in range(0, len(digits), 32)]
        return self._ready.pop()


_fresh_ids = _RandomIds()


async def _send_internal_error(context: RequestContext, send: Send) -> None:
    body = render(
        problem(
            500,
            kind="internal",
            detail="the service met an error of its own; report the request id",
            request_id=context.request_id,
        )
    )
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
