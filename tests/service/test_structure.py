"""Bodies of too much structure are refused before they are parsed; every valid body is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.body import parse
from service.errors import InvalidFieldsError
from service.schemas import (
    ADD_ITEMS,
    EVENTS,
    MAX_CHANGED,
    MAX_EVENTS,
    MAX_REQUESTS,
    MAX_SEQUENCE,
    RECALL_BATCH_REQUEST,
    RECALL_REQUEST,
)
from service.structure import LIMITS, MAX_BEHAVIOURS, check_structure

MUCH = 300_000
BEHAVIOUR = {"item_id": "[{:,", "timestamp": 1_700_000_000}


def request(num_behaviours: int) -> dict[str, Any]:
    asked = {"user_id": "u", "top_k": 1, "seed": 0, "exclude_seen": True, "exclude_item_ids": ["{[:"] * 9}
    return {**asked, "sequence": [BEHAVIOUR] * num_behaviours}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"[" + b"[]," * MUCH + b"[]]", "lists"),
        (b'{"user_id": "u", "k": [' + b"[]," * MUCH + b"[]]}", "lists"),
        (b"[" * MUCH, "lists"),
        (b'{"user_id": "u", "sequence": [' + b"{}," * MUCH + b"{}]}", "objects"),
        (b'{"user_id": {' + b",".join(b'"%d":1' % n for n in range(MUCH)) + b"}}", "fields"),
        (b'{"user_id": "u\\"", "k": [' + b"[]," * MUCH + b"[]]}", "lists"),
        (b'"\\\\"' + b"[" * MUCH, "lists"),
    ],
)
def test_too_much_of_something_is_refused_by_name(body: bytes, name: str) -> None:
    with pytest.raises(InvalidFieldsError, match=rf"body: holds \d+ {name}, at most \d+"):
        check_structure(body)


@pytest.mark.parametrize(
    "body",
    [
        b'["' + b"[{:" * MUCH + b'"]',
        b'["' + b"[{:\\\\" * MUCH + b'"]',
        b'["' + b'[{:\\"' * MUCH + b'"]',
        b'["\\\\", "' + b"[{:" * MUCH + b'"]',
    ],
)
def test_what_stands_in_strings_does_not_count(body: bytes) -> None:
    check_structure(body)


def test_the_largest_valid_bodies_are_within_the_limits() -> None:
    parse(RECALL_REQUEST, json.dumps(request(MAX_SEQUENCE)).encode())
    each = MAX_BEHAVIOURS // MAX_REQUESTS
    parse(RECALL_BATCH_REQUEST, json.dumps({"requests": [request(each)] * MAX_REQUESTS}).encode())
    parse(EVENTS, json.dumps([{"user_id": "u", **BEHAVIOUR}] * MAX_EVENTS).encode())
    item = {"item_id": "n", "similar_item_ids": ["i1", "i2"], "features": ["a=b"]}
    parse(ADD_ITEMS, json.dumps({"items": [item] * MAX_CHANGED}).encode())
    weighed = {**item, "similar_item_ids": {f"i{n}": 1 for n in range(64)}}
    parse(ADD_ITEMS, json.dumps({"items": [weighed] * MAX_CHANGED}).encode())


def test_each_limit_is_one_that_a_body_just_below_does_not_reach() -> None:
    for sign, (name, limit) in LIMITS.items():
        check_structure(sign * limit + b" " * 9_000)
        with pytest.raises(InvalidFieldsError, match=name):
            check_structure(sign * (limit + 1) + b" " * 9_000)


def test_many_wrong_fields_are_counted_and_not_listed() -> None:
    fields = ",".join(f'"k{number}": 1' for number in range(100_000))
    with pytest.raises(InvalidFieldsError, match="body: 100000 fields are wrong") as refused:
        parse(RECALL_REQUEST, ('{"user_id": "u", ' + fields + "}").encode())
    assert refused.value.errors == []
