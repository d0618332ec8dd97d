"""Reading what a caller sends: headers that matter, and a body bounded in size and in time.

A body that comes in several pieces is held until it is complete, for as long as its sender takes: all of them
together are bounded too, so that many slow ones cost no more memory than a few.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from service.deadline import MAX_DEADLINE_MS, Deadline
from service.errors import (
    BodyTooLargeError,
    InvalidBodyError,
    InvalidHeaderError,
    ReceiveTimeoutError,
    TooManyBodiesError,
    UnsupportedMediaTypeError,
    invalid_input,
    shorten,
)
from service.middleware import RequestContext
from service.structure import check_structure

Parsed = TypeVar("Parsed")
_CLOSE_ABOVE = 16
"""A body this many times over the limit is not waited for: the connection is closed."""

BODIES_AT_ONCE = 8
"""Bodies that are still arriving may hold this many times the limit of one, together."""


class BodyBudget:
    """Bytes of the bodies that are still arriving, of all requests of a listener."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Raises TooManyBodiesError when there is no room for them."""
        if self.held_bytes + num_bytes > self._max_bytes:
            raise TooManyBodiesError(
                f"bodies that are still arriving hold {self._max_bytes} bytes already; send it again later",
                headers={"Connection": "close", "Retry-After": "1"},
            )
        self.held_bytes += num_bytes


def deadline_of(context: RequestContext, default_ms: int) -> Deadline:
    """From X-Deadline-Ms, counted from the request's arrival. Raises InvalidHeaderError."""
    given = context.headers.get(b"x-deadline-ms")
    if given is None:
        return Deadline.after_ms(default_ms, start=context.started)
    if not (given.isdigit() and len(given) <= 6 and 1 <= int(given) <= MAX_DEADLINE_MS):
        raise InvalidHeaderError(
            f"X-Deadline-Ms: got {shorten(given.decode('latin-1'))}; send whole milliseconds, "
            f"1 to {MAX_DEADLINE_MS}"
        )
    return Deadline.after_ms(int(given), start=context.started)


async def read_body(
    context: RequestContext,
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    *,
    max_bytes: int,
    timeout_s: float,
    budget: BodyBudget,
) -> bytes:
    """The whole body. Raises on another media type, too many bytes, too long a wait, or a caller gone."""
    _check_media_type(context.headers.get(b"content-type"))
    declared = context.headers.get(b"content-length", b"")
    if declared.isdigit() and len(declared) < 20 and int(declared) > max_bytes:
        raise _too_large(max_bytes, close=int(declared) > _CLOSE_ABOVE * max_bytes)
    try:
        return await _within(timeout_s, _collect(receive, max_bytes, budget))
    except TimeoutError:
        raise ReceiveTimeoutError(
            f"the body did not arrive within {timeout_s:g} s; send it in one go",
            headers={"Connection": "close"},
        ) from None


def parse(schema: TypeAdapter[Parsed], body: bytes) -> Parsed:
    """Check the raw bytes against `schema`. Raises InvalidBodyError or InvalidFieldsError."""
    check_structure(body)
    try:
        return schema.validate_json(body)
    except ValidationError as error:
        raise invalid_input(error) from None


def parse_for(context: RequestContext, schema: TypeAdapter[Parsed], body: bytes) -> Parsed:
    """The same as a stage of a request."""
    started = time.monotonic()
    try:
        return parse(schema, body)
    finally:
        context.stage("parse", started)


async def _collect(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], max_bytes: int, budget: BodyBudget
) -> bytes:
    body = bytearray()  # and no list of pieces: they may be of two bytes each
    held = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InvalidBodyError("the connection was closed before the body was complete")
            chunk: bytes = message.get("body", b"")
            if held + len(chunk) > max_bytes:
                raise _too_large(max_bytes, close=True)
            if not message.get("more_body", False):
                return bytes(body + chunk) if held else chunk
            budget.take(len(chunk))
            body += chunk
            held = len(body)
    finally:
        budget.held_bytes -= held


async def _within(timeout_s: float, collecting: Coroutine[Any, None, bytes]) -> bytes:
    """What `collecting` gives. Nearly always the body is there already: then no timer is set.

    Raises TimeoutError when it takes longer.
    """
    try:
        awaited = collecting.send(None)
    except StopIteration as done:
        body: bytes = done.value
        return body
    async with asyncio.timeout(timeout_s):
        return await _Begun(collecting, awaited)


class _Begun:
    """The rest of a coroutine that was run up to where it waits for `awaited`."""

    def __init__(self, coroutine: Coroutine[Any, None, bytes], awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, None, bytes]:
        awaited = self._awaited
        try:
            while True:
                try:
                    yield awaited
                except BaseException as error:  # a cancellation: the coroutine must hear of it where it waits
                    awaited = self._coroutine.throw(error)
                else:
                    awaited = self._coroutine.send(None)
        except StopIteration as done:
            body: bytes = done.value
            return body


def _check_media_type(content_type: bytes | None) -> None:
    if content_type is None:
        return
    media_type = content_type.split(b";", 1)[0].strip().lower()
    if media_type != b"application/json" and not media_type.endswith(b"+json"):
        raise UnsupportedMediaTypeError(
            f"Content-Type: got {shorten(media_type.decode('latin-1'))}; send application/json"
        )


def _too_large(max_bytes: int, *, close: bool) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"the body is larger than {max_bytes} bytes; send fewer items or users at once",
        headers={"Connection": "close"} if close else None,
    )
