"""Recognises a request that is plainly one whole `POST /recall`, by the bytes of one read.

Nearly all requests are, and callers send the same head again and again, but for its length and an id: so a
head is looked at once and remembered. Whatever is framed in any other way, is not all there, or has more
behind it, is not recognised; HTTP's whole grammar is the parser's business.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from service.http_protocol import MAX_HEADERS

PATH = "/recall"
_MAX_HEAD = 2048
_RECALL = b"POST /recall HTTP/1.1\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r\n")
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[ \t]*[\x20-\x7e]*")
_UNUSUAL = (b"transfer-encoding", b"close", b"upgrade", b"expect", b"content-encoding")
"""Anywhere in a head: the parser reads it."""


class Head(NamedTuple):
    """Of a recognised request.

    headers: names in lower case, as ASGI has them   length: of the body, in bytes
    """

    headers: tuple[tuple[bytes, bytes], ...]
    length: int

    def value(self, name: bytes) -> bytes | None:
        """Of the header so called; None without one."""
        return next((value for known, value in self.headers if known == name), None)


class PlainRecall(NamedTuple):
    """One whole request."""

    head: Head
    body: bytes


def plain_recall(data: bytes) -> PlainRecall | None:
    """The request that `data` is; None for anything but one whole `POST /recall` in the plainest framing."""
    end = data.find(b"\r\n\r\n") + 4
    head = _head(data[:end]) if end <= _MAX_HEAD else None
    if head is None or head.length != len(data) - end:
        return None
    return PlainRecall(head, data[end:])


@lru_cache(maxsize=256)
def _head(head: bytes) -> Head | None:
    if not head.startswith(_RECALL):
        return None
    lowered = head.lower()
    if lowered.count(b"content-length") != 1 or any(word in lowered for word in _UNUSUAL):
        return None
    length = _LENGTH.search(lowered)
    lines = head[len(_RECALL) : -4].split(b"\r\n")
    if length is None or len(lines) > MAX_HEADERS or not all(map(_FIELD.fullmatch, lines)):
        return None
    fields = (line.split(b":", 1) for line in lines)
    return Head(tuple((name.lower(), value.strip(b" \t")) for name, value in fields), int(length[1]))
