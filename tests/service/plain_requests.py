"""POST /recall in the plainest framing, as bytes."""

from __future__ import annotations

BODY = b'{"user_id":"nobody"}'
HEAD = b"POST /recall HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def framed(body: bytes = BODY, head: bytes = HEAD, extra: bytes = b"") -> bytes:
    """head: without its last line   extra: further lines of it"""
    return head + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body
