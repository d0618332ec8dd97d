"""The HTTP protocol of the public listener: a plain `POST /recall` goes by the shortest way.

What `plain_recall` recognises needs no parser: the application is asked at once, with head and body, and its
answer leaves in one write. While the service is full, not even the application is asked: a refusal through
task and application costs about as much as a tenth of an answer, and at ten times what a core can answer they
would leave it no time to answer any. The 429 is then given here, byte for byte the application's but for its
time. Everything else is uvicorn's, as `http_protocol` guards it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.errors import CONTENT_TYPE, QueueFullError, render
from service.http_protocol import GuardedProtocol
from service.in_flight import InFlight
from service.middleware import request_id_of
from service.plain_recall import PATH, PlainRecall, plain_recall


def recall_protocol(
    in_flight: InFlight,
    on_refused: Callable[[], None] | None,
    base: type[GuardedProtocol],
) -> type[GuardedProtocol]:
    """A protocol for uvicorn.

    on_refused: called for each request that is refused because `in_flight` is full; None: the application
    refuses them itself
    """
    error = QueueFullError(in_flight.limit)
    before, after = render(error.problem("@")).split(b'"@"')
    extra = b"".join(b"%b: %b\r\n" % (k.lower().encode(), v.encode()) for k, v in error.headers.items())
    fixed = extra + b"content-type: %b\r\n" % CONTENT_TYPE.encode()

    def _begun() -> None:
        in_flight.arriving -= 1

    class RecallProtocol(base):  # type: ignore[valid-type,misc]
        """One connection."""

        _within_request = False
        _refused_at = 0.0

        def on_message_begin(self) -> None:
            self._within_request = True
            super().on_message_begin()

        def on_message_complete(self) -> None:
            self._within_request = False
            super().on_message_complete()

        def data_received(self, data: bytes) -> None:
            request = plain_recall(data) if self._at_rest() else None
            before = self.cycle
            if request is None:
                super().data_received(data)
            elif on_refused is not None and in_flight.full_for_arrivals:
                self._turn_away(request, on_refused)
                return
            else:
                self._answer(request)
            cycle = self.cycle
            if cycle is not before and not cycle.more_body and cycle.scope["path"] == PATH:
                in_flight.arriving += 1
                self.loop.call_soon(_begun)  # after its task has, which was put in the same line just now

        def _at_rest(self) -> bool:
            """No request is under way here, nothing waits to be read or written."""
            return (
                not self._within_request
                and (self.cycle is None or self.cycle.response_complete)
                and not self.pipeline
                and not self.flow.write_paused
                and not self.transport.is_closing()
            )

        def _answer(self, request: PlainRecall) -> None:
            self._unset_keepalive_if_required()
            self._stop_waiting()
            scope = {
                "type": "http",
                "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
                "http_version": "1.1",
                "server": self.server,
                "client": self.client,
                "scheme": self.scheme,
                "root_path": self.root_path,
                "headers": list(request.head.headers),
                "state": self.app_state.copy(),
                "method": "POST",
                "path": self.root_path + PATH,
                "raw_path": (self.root_path + PATH).encode(),
                "query_string": b"",
            }
            self.cycle = WholeCycle(self, scope, request.body)
            self._start_asgi_task(self.cycle, self.app)

        def _turn_away(self, request: PlainRecall, on_refused: Callable[[], None]) -> None:
            self._refused_at = arrived = time.monotonic()
            request_id = request_id_of(request.head.value(b"x-request-id"))
            quoted = orjson.dumps(request_id)
            head = [STATUS_LINE[error.status]]
            for name, value in self.server_state.default_headers:
                head += (name, b": ", value, b"\r\n")
            body = before + quoted + after
            seconds = time.monotonic() - arrived
            head += (
                fixed,
                b"content-length: %d\r\nx-request-id: %b\r\n" % (len(body), request_id.encode()),
                b"server-timing: total;dur=%.3f\r\n\r\n" % (1000 * seconds),
                body,
            )
            self.transport.write(b"".join(head))
            if self.timeout_keep_alive_task is None:
                self._close_when_idle(self.timeout_keep_alive)
            on_refused()

        def timeout_keep_alive_handler(self) -> None:
            # Moving the timer at each refusal would cost more than looking here when the last one was.
            idle = time.monotonic() - self._refused_at
            if idle < self.timeout_keep_alive:
                self._close_when_idle(self.timeout_keep_alive - idle)
            else:
                super().timeout_keep_alive_handler()

        def _close_when_idle(self, seconds: float) -> None:
            self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    return RecallProtocol


class WholeCycle(RequestResponseCycle):
    """One request that is all there; an answer that is all there, too, leaves in one write."""

    def __init__(self, connection: HttpToolsProtocol, scope: MutableMapping[str, Any], body: bytes) -> None:
        super().__init__(
            scope=scope,  # type: ignore[arg-type]
            transport=connection.transport,
            flow=connection.flow,
            logger=connection.logger,
            access_logger=connection.access_logger,
            access_log=False,
            default_headers=connection.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=connection.on_response_complete,
        )
        self.body = bytearray(body)
        self.more_body = False
        self.message_event.set()
        self._held: Any = None

    async def send(self, message: Any) -> None:
        """ASGI."""
        if not self.response_started:
            self._held = message
            self.response_started = True
            return
        if self._held is not None:
            start, self._held = self._held, None
            if not (message.get("more_body") or self.flow.write_paused or self.disconnected):
                self._send_whole(start["status"], start.get("headers", []), message.get("body", b""))
                return
            self.response_started = False
            await super().send(start)
        await super().send(message)

    def _send_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        fields = [*self.default_headers, *headers]
        if (b"content-length", b"%d" % len(body)) not in fields:
            raise RuntimeError(f"an answer of {len(body)} bytes must say so")
        self.keep_alive = self.keep_alive and (b"connection", b"close") not in fields
        if not self.keep_alive and (b"connection", b"close") not in fields:
            fields.append((b"connection", b"close"))
        head = STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % field for field in fields])
        if head.count(b"\n") != len(fields) + 1:
            raise RuntimeError("a header of the answer holds a line break")
        self.transport.write(b"%b\r\n%b" % (head, body))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
