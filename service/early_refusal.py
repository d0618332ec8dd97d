"""The 429 of an overloaded service, given before the request is parsed.

A refusal through parser, task and application costs about as much as a tenth of an answer: at ten times what
a core can answer, they would leave it no time to answer any. So while the service is full, the HTTP protocol
looks at the bytes themselves. What is one whole `POST /recall` in one piece, framed in the plainest way, is
refused there and then; everything else takes the usual way and is refused by the application. The answer is
the application's, byte for byte but for its time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import CONTENT_TYPE, QueueFullError, render
from service.in_flight import InFlight
from service.middleware import request_id_of

_MAX_HEAD = 2048
_PATH = "/recall"
_RECALL = b"POST /recall HTTP/1.1\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r\n")
_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([^\r\n]*)")
_UNUSUAL = (b"transfer-encoding", b"close", b"upgrade", b"expect", b"content-encoding")
"""Anywhere in a head: it takes the usual way."""


def refusing_early(
    in_flight: InFlight,
    on_refused: Callable[[], None],
    base: type[HttpToolsProtocol] = HttpToolsProtocol,
) -> type[HttpToolsProtocol]:
    """A protocol for uvicorn that refuses while `in_flight` is full.   on_refused: called for each"""
    error = QueueFullError(in_flight.limit)
    before, after = render(error.problem("@")).split(b'"@"')
    extra = b"".join(b"%b: %b\r\n" % (k.lower().encode(), v.encode()) for k, v in error.headers.items())
    start = b"HTTP/1.1 %d Too Many Requests\r\n" % error.status
    fixed = extra + b"content-type: %b\r\n" % CONTENT_TYPE.encode()

    def _begun() -> None:
        in_flight.arriving -= 1

    class RefusingEarly(base):  # type: ignore[valid-type,misc]
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
            if in_flight.full_for_arrivals and self._at_rest():
                arrived = time.monotonic()
                request_id = whole_recall(data)
                if request_id is not None:
                    self._turn_away(request_id, arrived)
                    return
            before = self.cycle
            super().data_received(data)
            cycle = self.cycle
            if cycle is not before and not cycle.more_body and cycle.scope["path"] == _PATH:
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

        def _turn_away(self, request_id: str, arrived: float) -> None:
            self._refused_at = arrived
            quoted = orjson.dumps(request_id)
            head = [start]
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

    return RefusingEarly


def whole_recall(data: bytes) -> str | None:
    """The request id, given or fresh, if `data` is one whole `POST /recall` in the plainest framing."""
    end = data.find(b"\r\n\r\n") + 4
    framed = _framed(data[:end]) if end <= _MAX_HEAD else None
    if framed is None or framed.length != len(data) - end:
        return None
    return request_id_of(framed.request_id)


class _Framed(NamedTuple):
    """Of a head: how long the body is, and the request id that was given."""

    length: int
    request_id: bytes | None


@lru_cache(maxsize=256)  # callers send the same head again and again, but for the length and an id
def _framed(head: bytes) -> _Framed | None:
    """None for anything but a `POST /recall` in the plainest framing."""
    if not head.startswith(_RECALL):
        return None
    lowered = head.lower()
    if lowered.count(b"content-length") != 1 or any(word in lowered for word in _UNUSUAL):
        return None
    length = _LENGTH.search(lowered)
    if length is None:
        return None
    given = _REQUEST_ID.search(lowered)
    return _Framed(int(length[1]), given and head[given.start(1) : given.end(1)].strip())
