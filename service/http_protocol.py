"""uvicorn's HTTP/1.1 protocol with the limits that it lacks: on slow, on huge and on unread connections.

- A request's head must be complete within `header_timeout_s` of its first byte (408), hold at most
  MAX_HEADERS lines and MAX_HEAD_BYTES (431). uvicorn has no limit on either, and a half-sent head stays open.
- A connection that has nothing to answer, and whose peer sends something other than a request (the rest of a
  refused body, empty lines, bytes after an upgrade), is closed after the same time. uvicorn takes its
  keep-alive timer away at the first such byte and never sets it again.
- Requests sent ahead of the answers (pipelining): MAX_PIPELINED; a single read could hold thousands.
- An answer of which not even half was read in `header_timeout_s` is given up, and MAX_UNREAD_BYTES of them
  wait at most: beyond, the one that waits longest goes.

A request that comes in one piece, as nearly all do, sets no timer.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import CONTENT_TYPE, problem, render

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32 * 1024
MAX_PIPELINED = 16
MAX_UNREAD_BYTES = 64 * 1024 * 1024
_NOT_HTTP = (400, "invalid-http", "the request is not valid HTTP/1.1")
_SLOW_HEAD = (408, "header-timeout", "the request line and headers did not arrive in time; send them at once")
_LARGE_HEAD = (
    431,
    "head-too-large",
    f"the request line and headers are more than {MAX_HEADERS} lines or {MAX_HEAD_BYTES} bytes; send fewer",
)
_AHEAD = (429, "too-many-pipelined", f"more than {MAX_PIPELINED} requests were sent ahead of their answers")


def guarded_protocol(header_timeout_s: float) -> type[GuardedProtocol]:
    """The protocol class of one listener, to be given to uvicorn as `http`."""
    return type("Guarded", (GuardedProtocol,), {"header_timeout_s": header_timeout_s, "unread": {}})


class GuardedProtocol(HttpToolsProtocol):
    """One connection.   unread: the listener's connections whose answers wait to be read, oldest first"""

    header_timeout_s: ClassVar[float]
    unread: ClassVar[dict[GuardedProtocol, None]]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = False
        self._fed_bytes = 0  # of the reads that held a part of the present head: at least its size
        self._refusal = _NOT_HTTP
        self._patience: asyncio.TimerHandle | None = None
        self._unread_check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer that never says anything is idle, as one between two requests is."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing of it is left behind."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it when the connection broke
        self._stop_waiting()
        self._read_again()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then see whether the peer now owes us something."""
        began_in_head = self._in_head
        self._fed_bytes = self._fed_bytes + len(data) if began_in_head else len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._in_head and self._answering:
            self._stop_waiting()
        elif began_in_head and self._in_head and self._fed_bytes > MAX_HEAD_BYTES:
            self._refuse(_LARGE_HEAD)
        elif self._patience is None:
            self._patience = self.loop.call_later(self.header_timeout_s, self._lose_patience)

    def on_message_begin(self) -> None:
        """The parser saw the first byte of a request."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """The parser saw a whole head; what is raised here ends in `send_400_response`."""
        self._in_head = False
        too_large = len(self.headers) > MAX_HEADERS
        if self._fed_bytes > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            too_large |= size > MAX_HEAD_BYTES
        if too_large or len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = _LARGE_HEAD if too_large else _AHEAD
            raise ValueError("refused")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's way out when the parser fails; an answer that is still owed is never forestalled."""
        self._refuse(self._refusal)

    def pause_writing(self) -> None:
        """The peer does not read what it asked for, or not as fast as it is written."""
        super().pause_writing()
        self.unread[self] = None
        self._check_unread_later()
        if sum(each.transport.get_write_buffer_size() for each in self.unread) > MAX_UNREAD_BYTES:
            next(iter(self.unread)).transport.abort()

    def resume_writing(self) -> None:
        """The peer has read nearly all."""
        super().resume_writing()
        self._read_again()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, refusal: tuple[int, str, str]) -> None:
        """Answer with a problem and close. A whole request that is still being answered: only close."""
        if not self._answering or (self.cycle.more_body and not self.cycle.response_started):
            status, kind, detail = refusal
            body = render(problem(status, kind=kind, detail=detail))
            head = b"content-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % (CONTENT_TYPE.encode(), len(body)) + body)
        self.transport.close()

    def _lose_patience(self) -> None:
        self._patience = None
        if self.transport.is_closing():
            return
        if self._answering:  # part of a head behind a request that still is at work: that one gets its answer
            self.cycle.keep_alive = False
        elif self._in_head:
            self._refuse(_SLOW_HEAD)
        else:
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _check_unread_later(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread_check = self.loop.call_later(self.header_timeout_s, self._check_unread, left)

    def _check_unread(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > before // 2:
            self.transport.abort()
        else:
            self._check_unread_later()

    def _read_again(self) -> None:
        self.unread.pop(self, None)
        if self._unread_check is not None:
            self._unread_check.cancel()
            self._unread_check = None
