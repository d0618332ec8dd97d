"""What is plainly one whole POST /recall is recognised, and nothing else."""

from __future__ import annotations

import pytest

from service.http_protocol import MAX_HEADERS
from service.plain_recall import plain_recall
from tests.service.plain_requests import BODY, HEAD, framed


def test_one_whole_request_in_the_plainest_framing_is_recognised_with_head_and_body() -> None:
    made = plain_recall(framed(extra=b"X-Request-ID:  Abc-1 \r\nX-Empty:\r\n"))
    assert made is not None
    assert made.body == BODY
    assert made.head.headers == (
        (b"host", b"x"),
        (b"content-type", b"application/json"),
        (b"x-request-id", b"Abc-1"),
        (b"x-empty", b""),
        (b"content-length", b"%d" % len(BODY)),
    )
    assert made.head.value(b"x-request-id") == b"Abc-1"
    assert made.head.value(b"x-deadline-ms") is None
    assert plain_recall(framed(extra=b"Connection: keep-alive\r\n")) is not None
    blank = plain_recall(framed(body=b"\r\n\r\n{}"))
    assert blank is not None, "a blank line in the body ends no head"
    assert blank.body == b"\r\n\r\n{}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        framed()[:-1],
        framed() + b"P",
        framed() + framed(),
        framed(head=HEAD.replace(b"/recall", b"/recall/batch")),
        framed(head=HEAD.replace(b"POST", b"GET")),
        framed(head=HEAD.replace(b"1.1", b"1.0")),
        framed(extra=b"Content-Length: 20\r\n"),
        framed(extra=b"Content-Encoding: gzip\r\n"),
        framed(extra=b"Connection: keep-alive, close\r\n"),
        HEAD + b"Content-Length: 0000000020\r\n\r\n" + BODY,
        framed(extra=b"Transfer-Encoding: chunked\r\n"),
        framed(extra=b"Transfer-Encoding : chunked\r\n"),
        framed(extra=b"X: y\nTransfer-Encoding: chunked\r\n"),
        framed(extra=b"Connection: close\r\n"),
        framed(extra=b"Expect: 100-continue\r\n"),
        framed(extra=b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        HEAD + b"Content-Length : 20\r\n\r\n" + BODY,
        HEAD + b"X: content-length: 20\r\n\r\n" + BODY,
        HEAD + b"Content-Length: +20\r\n\r\n" + BODY,
        HEAD + b"\r\n" + BODY,
        HEAD + b"Content-Length: 20\r\n",
        framed(extra=b"X Y: z\r\n"),
        framed(extra=b"X : z\r\n"),
        framed(extra=b": z\r\n"),
        framed(extra=b"X\r\n"),
        framed(extra=b" folded\r\n"),
        framed(extra=b"X: a\x00b\r\n"),
        framed(extra=b"X: a\rb\r\n"),
        framed(extra=b"X: \xe4\r\n"),
        framed(extra=b"X: y\r\n" * (MAX_HEADERS + 1)),
    ],
)
def test_anything_else_takes_the_usual_way(data: bytes) -> None:
    assert plain_recall(data) is None
