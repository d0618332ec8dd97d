"""Hand-made request lines, headers and framings, each with the statuses that are right for it.

0 stands for a connection that is closed without an answer. Where several statuses are given, the parser may
refuse what the application would refuse too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BODY = b'{"user_id": "u", "top_k": 1}'
_POST = b"POST /recall HTTP/1.1\r\nHost: x\r\n"
_LENGTH = b"Content-Length: %d\r\n" % len(BODY)
_CLOSE = b"Connection: close\r\n\r\n"


class Head(NamedTuple):
    """One request as it is sent. pieces: several when it is sent in parts for as long as it is taken"""

    name: str
    pieces: Iterator[bytes] | tuple[bytes, ...]
    statuses: tuple[int, ...]


MEDIA_TYPES = [
    b"text/plain",
    b"text/html",
    b"application/xml",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"application/octet-stream",
    b"application/jsonp",
    b"application/json, text/plain",
    b"json",
    b"/",
    b"",
    b"\xff\xfe",
    b"application/" + b"x" * 10_000,
    b"application/x-python-pickle",
]

DEADLINES = [b"0", b"-1", b"1.5", b"1e3", b"soon", b"", b" ", b"NaN", b"true", b"600001", b"9" * 5_000]
DEADLINES += [b"0x10", b"1 2", b"1,2", b"\xd9\xa1", b"\xff"]

FRAMINGS = {
    "a negative length": b"Content-Length: -1\r\n",
    "a length in words": b"Content-Length: ten\r\n",
    "a length in hexadecimal": b"Content-Length: 0x1c\r\n",
    "a length with a sign": b"Content-Length: +28\r\n",
    "a length of forty digits": b"Content-Length: " + b"9" * 40 + b"\r\n",
    "an empty length": b"Content-Length: \r\n",
    "two lengths": b"Content-Length: 28\r\nContent-Length: 29\r\n",
    "a list of lengths": b"Content-Length: 28, 29\r\n",
    "length and chunks": _LENGTH + b"Transfer-Encoding: chunked\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\n" + _LENGTH,
    "an unknown coding": b"Transfer-Encoding: zip\r\n",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n",
    "chunked, but not last": b"Transfer-Encoding: chunked, gzip\r\n",
    "chunked with a tail": b"Transfer-Encoding: chunkedx\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n",
    "a folded header": b"X-A: b\r\n c\r\n" + b"Transfer-Encoding: chunked\r\n",
    "a NUL in a name": b"X\x00A: b\r\n" + _LENGTH,
    "a NUL in a value": b"X-A: b\x00c\r\n" + _LENGTH,
    "a bare carriage return": b"X-A: b\rc\r\n" + _LENGTH,
    "a header without a colon": b"nonsense\r\n" + _LENGTH,
    "a header without a name": b": b\r\n" + _LENGTH,
}
"""Between a good request line and a good body: 400, or no answer at all."""

CHUNKS = {
    "a size that is none": b"zz\r\n",
    "a negative size": b"-1\r\n",
    "a size of forty digits": b"f" * 40 + b"\r\n",
    "a size that does not fit": b"1\r\n{}{}\r\n0\r\n\r\n",
    "a chunk without an end": b"1\r\n{x",
    "a chunk extension with a line break": b"1;\n\r\n{\r\n0\r\n\r\n",
}

LINES = {
    "nothing that is HTTP": b"\x00\x01\x02\x03\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/1.1 without a slash": b"GET / HTTP1.1\r\n\r\n",
    "a Redis command": b"*1\r\n$8\r\nFLUSHALL\r\n",
    "an SSH greeting": b"SSH-2.0-x\r\n\r\n",
    "an unknown method": b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method in small letters": b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path without a slash": b"GET recall HTTP/1.1\r\nHost: x\r\n\r\n",
    "a raw byte in the path": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a NUL in the path": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a response": b"HTTP/1.1 200 OK\r\n\r\n",
    "a megabyte of letters": b"A" * 1_000_000,
    "a megabyte of path": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a megabyte of query": b"GET /docs?" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "20,000 headers": b"GET /docs HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    "256 KB of one header": b"GET /docs HTTP/1.1\r\na: " + b"b" * 262_144 + b"\r\n\r\n",
    "256 KB of headers": b"GET /docs HTTP/1.1\r\n" + (b"a: " + b"b" * 4_096 + b"\r\n") * 64 + b"\r\n",
    "a header name of 256 KB": b"GET /docs HTTP/1.1\r\n" + b"a" * 262_144 + b": b\r\n\r\n",
    "5,000 requests at once": b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 5_000,
}
"""Sent as they are: 400, 404, 405, 408, 429 or 431, or no answer."""

PATHS = [
    b"/nothing",
    b"/recall/",
    b"//recall",
    b"/RECALL",
    b"/recall%00",
    b"/recall%2f",
    b"/%72ecall/..",
    b"/../../etc/passwd",
    b"/%2e%2e/%2e%2e/etc/passwd",
    b"/..%5c..%5cetc",
    b"/%ff%fe",
    b"/%",
    b"/%zz",
    b"/metrics",
    b"/admin/reload",
    b"/admin/rollback",
    b"/admin/items",
    b"/v2/health/live/../../../admin/reload",
    b"/.git/config",
    b"/static/../service/settings.py",
    b"/%F0%9F%98%80",
    b"/?" + b"&" * 10_000,
]
"""POST to each: 404 or 405, and never what lies on the admin port."""


def heads() -> Iterator[Head]:
    """Every request, each with a name of its own."""
    for number, media_type in enumerate(MEDIA_TYPES):
        head = _POST + b"Content-Type: " + media_type + b"\r\n" + _LENGTH + _CLOSE
        yield Head(f"media type {number}", (head + BODY,), (400, 415))
    for number, deadline in enumerate(DEADLINES):
        head = _POST + b"X-Deadline-Ms: " + deadline + b"\r\n" + _LENGTH + _CLOSE
        yield Head(f"deadline {number}", (head + BODY,), (400,))
    for name, lines in FRAMINGS.items():
        yield Head(name, (_POST + lines + _CLOSE + BODY,), (400, 408, 413, 0))
    for name, chunk in CHUNKS.items():
        head = _POST + b"Transfer-Encoding: chunked\r\n" + _CLOSE
        yield Head(name, (head + chunk,), (400, 408, 0))
    for name, line in LINES.items():
        yield Head(name, (line,), (400, 404, 405, 408, 429, 431, 0))
    for number, path in enumerate(PATHS):
        head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n" + _CLOSE
        yield Head(f"path {number}", (head,), (400, 404, 405))
    for name, (sent, statuses) in _slow().items():
        yield Head(name, (sent,), statuses)
    for name, (begun, piece) in _endless().items():
        yield Head(name, _repeated(begun, piece, 2**30), (413, 429, 0))


def _slow() -> dict[str, tuple[bytes, tuple[int, ...]]]:
    """What stops before it is whole: answered when patience ends."""
    return {
        "half a request line": (b"POST /rec", (408,)),
        "half a header": (_POST + b"Content-Le", (408,)),
        "headers without their end": (_POST + _LENGTH, (408,)),
        "half a body": (_POST + _LENGTH + _CLOSE + BODY[:5], (408,)),
        "no body": (_POST + _LENGTH + _CLOSE, (408,)),
        "half a chunk": (_POST + b"Transfer-Encoding: chunked\r\n" + _CLOSE + b"1c\r\n{", (408,)),
        "chunks without their end": (
            _POST + b"Transfer-Encoding: chunked\r\n" + _CLOSE + b"1c\r\n" + BODY + b"\r\n",
            (408,),
        ),
        "a body to be asked for": (_POST + _LENGTH + b"Expect: 100-continue\r\n" + _CLOSE, (100,)),
        "empty lines": (b"\r\n" * 100, (0,)),
    }


def _endless() -> dict[str, tuple[bytes, bytes]]:
    """A gigabyte, announced or not."""
    declared = b"Content-Length: 1073741824\r\n\r\n"
    return {
        "a declared gigabyte": (_POST + declared, b" " * 65_536),
        "a gigabyte in chunks": (
            _POST + b"Transfer-Encoding: chunked\r\n\r\n",
            b"10000\r\n" + b" " * 65_536 + b"\r\n",
        ),
        "a gigabyte for events": (_POST.replace(b"/recall", b"/events") + declared, b"[" * 65_536),
        "a gigabyte for a batch": (_POST.replace(b"/recall", b"/recall/batch") + declared, b"{" * 65_536),
    }


def _repeated(begun: bytes, piece: bytes, size: int) -> Iterator[bytes]:
    yield begun
    for _ in range(size // len(piece)):
        yield piece
