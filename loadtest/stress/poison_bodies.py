"""Hand-made bodies that a service must refuse, or may take, without harm: (path, name, body, statuses).

What is right is stated for each: a refusal by its status, or 200 where odd input is allowed. Bodies stand as
they are sent, for JSON writers would mend most of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

RECALL, BATCH, EVENTS = "/recall", "/recall/batch", "/events"
_DEEP = 100_000
_SURROGATE = b'"\\ud800"'
_BIG = b"1" + b"0" * 400


class Body(NamedTuple):
    """One body and the statuses that are right for it."""

    path: str
    name: str
    body: bytes
    statuses: tuple[int, ...]


NOT_JSON = {
    "nothing": b"",
    "a space": b" ",
    "an open object": b"{",
    "a closed object": b"}",
    "an open string": b'{"user_id": "u',
    "an open escape": b'{"user_id": "\\',
    "a cut escape": b'{"user_id": "\\u12"}',
    "an unknown escape": b'{"user_id": "\\q"}',
    "a lone surrogate": b'{"user_id": %s}' % _SURROGATE,
    "a low surrogate": b'{"user_id": "\\udc00"}',
    "surrogates the wrong way round": b'{"user_id": "\\udc00\\ud800"}',
    "a lone surrogate as a key": b'{%s: 1, "user_id": "u"}' % _SURROGATE,
    "a raw line break": b'{"user_id": "a\nb"}',
    "a raw NUL": b'{"user_id": "a\x00b"}',
    "bytes that are not UTF-8": b'{"user_id": "\xff\xfe"}',
    "an overlong NUL": b'{"user_id": "\xc0\x80"}',
    "a surrogate in UTF-8": b'{"user_id": "\xed\xa0\x80"}',
    "a cut UTF-8 character": b'{"user_id": "\xe2\x82"}',
    "UTF-16": '{"user_id": "u"}'.encode("utf-16"),
    "UTF-32": '{"user_id": "u"}'.encode("utf-32"),
    "a byte order mark": b'\xef\xbb\xbf{"user_id": "u"}',
    "a trailing comma": b'{"user_id": "u",}',
    "single quotes": b"{'user_id': 'u'}",
    "no quotes": b"{user_id: u}",
    "a comment": b'{"user_id": "u" /* me */}',
    "two documents": b'{"user_id": "u"}{"user_id": "v"}',
    "a document and a word": b'{"user_id": "u"} x',
    "a leading zero": b'{"user_id": "u", "top_k": 010}',
    "a plus sign": b'{"user_id": "u", "top_k": +1}',
    "a bare minus": b'{"user_id": "u", "top_k": -}',
    "no digit before the point": b'{"user_id": "u", "top_k": .5}',
    "no digit after the point": b'{"user_id": "u", "top_k": 1.}',
    "hexadecimal": b'{"user_id": "u", "top_k": 0x10}',
    "a missing colon": b'{"user_id" "u"}',
    "a missing value": b'{"user_id":}',
    "a key without quotes": b"{1: 2}",
    "XML": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    "a form": b"user_id=u&top_k=10",
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "zeros": b"\x00" * 100_000,
    "spaces": b" " * 1_000_000,
}
"""Of every route: 400."""

NOT_AN_OBJECT = {
    "null": b"null",
    "true": b"true",
    "a number": b"1",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a string": b'"u"',
    "a list of a list": b"[[]]",
    "a list of null": b"[null]",
    "deep lists": b"[" * _DEEP + b"]" * _DEEP,
    "deep open lists": b"[" * _DEEP,
    "deep objects": b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
    "a deep sequence": b'{"user_id": "u", "sequence": ' + b"[" * _DEEP + b"]" * _DEEP + b"}",
    "a million numbers": b"[" + b"1," * 1_000_000 + b"1]",
    "a million lists": b"[" + b"[]," * 1_000_000 + b"[]]",
    "a number of a million digits": b"9" * 1_000_000,
    "an object without fields": b"{}",
    "an object of prototypes": b'{"__proto__": {"user_id": "u"}, "constructor": {}}',
}
"""Of every route: 422, or 400 where it is not even JSON."""

IDENTIFIERS = {
    "true": b"true",
    "false": b"false",
    "null": b"null",
    "a fraction": b"1.5",
    "a whole fraction": b"1.0",
    "an exponent": b"1e3",
    "beyond floats": b"1e400",
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "a list": b'["u"]',
    "an object": b'{"$ne": null}',
    "empty": b'""',
    "129 characters": b'"' + b"x" * 129 + b'"',
    "a megabyte": b'"' + b"x" * 1_000_000 + b'"',
    "129 digits": b"1" * 129,
    "5,000 digits": b"1" * 5_000,
    "NUL": b'"a\\u0000b"',
    "a line break": b'"a\\nb"',
    "a command": b'"u\\r\\nFLUSHALL\\r\\n"',
    "a tab": b'"a\\tb"',
    "delete": b'"\\u007f"',
    "an escape sequence": b'"\\u001b[2J"',
    "a right-to-left override": b'"\\u202e"',
    "a zero-width space": b'"\\u200b"',
    "a line separator": b'"\\u2028"',
    "a byte order mark": b'"\\ufeff"',
    "a private character": b'"\\ue000"',
    "no character": b'"\\uffff"',
    "a wide space": b'"\\u00a0"',
}
"""As a user or an item: 422."""

ODD_IDENTIFIERS = {
    "a path": b'"../../../etc/passwd"',
    "SQL": b'"\' OR 1=1 --"',
    "a pattern": b'"*"',
    "a hash tag": b'"{u}"',
    "a colon": b'"t2diff:seq1:other"',
    "a template": b'"${jndi:ldap://x/a}{{7*7}}%s%n"',
    "a script": b'"<script>alert(1)</script>"',
    "a space": b'" "',
    "Greek": '"χρήστης"'.encode(),
    "an emoji": b'"\\ud83d\\ude00"',
    "combining marks": b'"e' + b"\\u0301" * 100 + b'"',
    "128 characters": b'"' + b"x" * 128 + b'"',
    "zero": b"0",
    "a negative": b"-1",
    "above 64 bits": b"18446744073709551616",
    "128 digits": b"1" * 128,
}
"""As a user: allowed, printable and bounded as they are."""

VALUES = {
    "top_k": {
        "0": b"0",
        "-0": b"-0",
        "-1": b"-1",
        "1001": b"1001",
        "64 bits": b"9223372036854775808",
        "a big one": _BIG,
        "a fraction": b"1.5",
        "a whole fraction": b"10.0",
        "an exponent": b"1e2",
        "beyond floats": b"1e400",
        "NaN": b"NaN",
        "Infinity": b"Infinity",
        "true": b"true",
        "text": b'"10"',
        "null": b"null",
        "a list": b"[10]",
    },
    "seed": {
        "-1": b"-1",
        "2**53": b"9007199254740992",
        "true": b"true",
        "text": b'"0"',
        "a fraction": b"0.5",
        "null": b"null",
    },
    "exclude_seen": {"0": b"0", "1": b"1", "text": b'"true"', "null": b"null", "a list": b"[]"},
    "exclude_item_ids": {
        "null": b"null",
        "text": b'"i1"',
        "an object": b'{"i1": 1}',
        "null inside": b"[null]",
        "true inside": b'["i1", true]',
        "a list inside": b"[[]]",
        "empty inside": b'[""]',
        "10,001": b"[" + b"1," * 10_000 + b"1]",
        "300,000": b"[" + b"1," * 300_000 + b"1]",
        "300,000 wrong ones": b"[" + b"[]," * 300_000 + b"[]]",
    },
    "sequence": {
        "text": b'"i1"',
        "an object": b"{}",
        "a number inside": b"[1]",
        "an empty object inside": b"[{}]",
        "an unknown field": b'[{"item_id": "i1", "price": 1}]',
        "1,001": b"[" + b'{"item_id":"i1"},' * 1_000 + b'{"item_id":"i1"}]',
        "100,000 empty ones": b"[" + b"{}," * 100_000 + b"{}]",
        "a boolean item": b'[{"item_id": true}]',
        "a negative time": b'[{"item_id": "i1", "timestamp": -1}]',
        "milliseconds": b'[{"item_id": "i1", "timestamp": 1700000000000}]',
        "a boolean time": b'[{"item_id": "i1", "timestamp": true}]',
        "a text time": b'[{"item_id": "i1", "timestamp": "1700000000"}]',
        "a fractional time": b'[{"item_id": "i1", "timestamp": 1.5}]',
        "a NaN time": b'[{"item_id": "i1", "timestamp": NaN}]',
        "a time beyond floats": b'[{"item_id": "i1", "timestamp": 1e400}]',
        "a huge time": b'[{"item_id": "i1", "timestamp": %s}]' % _BIG,
    },
}
"""Beside a good user: 422."""

UNKNOWN_FIELDS = {
    "one": b'"k": 1',
    "NaN": b'"k": NaN',
    "in capitals": b'"USER_ID": "v"',
    "an empty name": b'"": 1',
    "a NUL in the name": b'"\\u0000": 1',
    "a name of a megabyte": b'"' + b"x" * 1_000_000 + b'": 1',
    "100,000": b",".join(b'"k%d":1' % number for number in range(100_000)),
}

BAD_EVENTS = {
    "no item": b'{"user_id": "u"}',
    "no user": b'{"item_id": "i1"}',
    "an unknown field": b'{"user_id": "u", "item_id": "i1", "rating": 5}',
    "of the year 2099": b'{"user_id": "u", "item_id": "i1", "timestamp": 4102444799}',
    "an empty list": b"[]",
    "1,001": b"[" + b'{"user_id":"u","item_id":"i1"},' * 1_000 + b'{"user_id":"u","item_id":"i1"}]',
    "a bad one among good ones": b'[{"user_id": "u", "item_id": "i1"}, {"user_id": "u"}]',
    "a list in a list": b'[[{"user_id": "u", "item_id": "i1"}]]',
    "100,000 empty ones": b"[" + b"{}," * 100_000 + b"{}]",
}

BAD_BATCHES = {
    "no requests": b'{"requests": null}',
    "empty": b'{"requests": []}',
    "an object": b'{"requests": {"user_id": "u"}}',
    "257": b'{"requests": [' + b'{"user_id":"u"},' * 256 + b'{"user_id":"u"}]}',
    "100,000": b'{"requests": [' + b"{}," * 100_000 + b"{}]}",
    "an unknown field": b'{"requests": [{"user_id": "u"}], "priority": 1}',
}

MIXED_BATCHES = {
    "of nonsense": b'{"requests": [null, 1, "u", [], {}, true, {"user_id": NaN}, {"user_id": {}}]}',
    "of 256 wrong ones": b'{"requests": [' + b'{"user_id":1.5,"k":[]},' * 255 + b"{}]}",
    "with a good one": b'{"requests": [{"user_id": "u", "top_k": 1}, {"user_id": "u", "top_k": 1e400}]}',
}
"""200: each member is refused on its own."""


def bodies() -> Iterator[Body]:
    """Every body, each with a name of its own."""
    for path, good in ((RECALL, b"{}"), (BATCH, b'{"requests": 1}'), (EVENTS, b"{}")):
        yield Body(path, "nothing but a wrong document", good, (422,))
        for name, body in NOT_JSON.items():
            if path == RECALL or len(body) < 1_000:
                yield Body(path, name, body, (400,))
        for name, body in NOT_AN_OBJECT.items():
            if path == RECALL or len(body) < 1_000:
                yield Body(path, name, body, (400, 422))
    for name, value in IDENTIFIERS.items():
        yield Body(RECALL, f"user_id: {name}", b'{"user_id": %s}' % value, (400, 422))
        yield Body(EVENTS, f"item_id: {name}", b'{"user_id": "u", "item_id": %s}' % value, (400, 422))
    for name, value in ODD_IDENTIFIERS.items():
        yield Body(RECALL, f"user_id: {name}", b'{"user_id": %s, "top_k": 1}' % value, (200,))
    for field, values in VALUES.items():
        for name, value in values.items():
            body = b'{"user_id": "u", "%s": %s}' % (field.encode(), value)
            yield Body(RECALL, f"{field}: {name}", body, (400, 422))
    for name, field_and_value in UNKNOWN_FIELDS.items():
        body = b'{"user_id": "u", %s}' % field_and_value
        yield Body(RECALL, f"unknown field: {name}", body, (400, 422))
    for path, status, table in (
        (EVENTS, 422, BAD_EVENTS),
        (BATCH, 422, BAD_BATCHES),
        (BATCH, 200, MIXED_BATCHES),
    ):
        for name, body in table.items():
            yield Body(path, name, body, (status,))
