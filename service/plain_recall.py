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
_HEAD = re.compile(
    rb"%b(?:[!#$%%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e]*\r\n){1,%d}\r\n" % (re.escape(_RECALL), MAX_HEADERS)
)
_FIELD = re.compile(rb"([^:\r\n]+):([^\r\n]*)\r\n")
_UNUSUAL = {b"transfer-encoding", b"upgrade", b"expect", b"content-encoding"}
"""With one of these headers, the parser reads it."""


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
    if _HEAD.fullmatch(head) is None:
        return None
    headers = tuple(
        [(name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(head, len(_RECALL))]
    )
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) != 1 or not (lengths[0].isdigit() and len(lengths[0]) < 10):
        return None
    for name, value in headers:
        if name in _UNUSUAL or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
    return Head(headers, int(lengths[0]))
