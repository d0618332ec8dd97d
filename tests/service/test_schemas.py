"""What a body may hold, from raw bytes: strict, bounded, and never a surprise."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from service.body import parse
from service.errors import InvalidBodyError, InvalidFieldsError, ServiceError, render, shorten
from service.schemas import EVENT, EVENTS, RECALL_BATCH_REQUEST, RECALL_REQUEST, RecallRequest, Refused


def recall(**fields: Any) -> RecallRequest:
    return parse(RECALL_REQUEST, json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("given_id", "taken_as"),
    [
        ("u42", "u42"),
        (42, "42"),
        (-1, "-1"),
        (2**70, str(2**70)),
        ("x" * 128, "x" * 128),
        ("日本 é", "日本 é"),
        ("🎬", "🎬"),
    ],
)
def test_identifiers_are_strings_or_integers_taken_as_strings(given_id: Any, taken_as: str) -> None:
    assert recall(user_id=given_id).user_id == taken_as
    assert recall(user_id="u", exclude_item_ids=[given_id]).exclude_item_ids == [taken_as]
    assert parse(EVENT, json.dumps({"user_id": "u", "item_id": given_id}).encode()).item_id == taken_as


@pytest.mark.parametrize(
    "wrong", [True, False, 1.0, 1.5, None, "", "x" * 129, "a\nb", "a\x00b", "\x7f", "\u202e", [], {}, 10**200]
)
def test_other_identifiers_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidFieldsError, match="user_id"):
        recall(user_id=wrong)
    with pytest.raises(InvalidFieldsError, match=r"exclude_item_ids\.0"):
        recall(user_id="u", exclude_item_ids=[wrong])
    with pytest.raises(InvalidFieldsError, match=r"sequence\.0\.item_id"):
        recall(user_id="u", sequence=[{"item_id": wrong}])


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *[("top_k", value) for value in (0, -1, 1001, 10**30, 10.0, "10", True, None, [])],
        *[("seed", value) for value in (-1, 2**53, 1.0, "1", True, None)],
        *[("exclude_seen", value) for value in (0, 1, "true", None)],
        ("exclude_item_ids", "7"),
        ("exclude_item_ids", ["x"] * 10_001),
        ("exclude_item_ids", None),
        ("sequence", [{"item_id": "a"}] * 1001),
        ("sequence", [{"item_id": "a", "timestamp": 1_700_000_000_000}]),
        ("sequence", [{"item_id": "a", "timestamp": -1}]),
        ("sequence", [{"item_id": "a", "timestamp": 1.5}]),
        ("sequence", [{"item_id": "a", "timestamp": "1"}]),
        ("sequence", [{"item_id": "a", "timestamp": True}]),
        ("sequence", [{"item_id": "a", "rating": 5}]),
        ("sequence", ["a"]),
        ("sequence", {}),
        ("topk", 10),
        ("model_config", {}),
        ("__class__", "x"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, wrong: Any) -> None:
    with pytest.raises(InvalidFieldsError) as refused:
        recall(**{"user_id": "u", field: wrong})
    assert refused.value.errors[0]["field"].startswith(field)
    assert all(refused.value.errors[0].values())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"{'user_id': 'u'}", b'{"user_id": "\\ud800"}', b'{"user_id": "\xff"}',
        b"[" * 2_000, b'{"user_id":' * 1000, b'{"user_id": "u", "top_k": ' + b"9" * 10_000 + b"}",
        b"\xef\xbb\xbf{}", b'{"user_id": "u"} trailing',
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused_as_such(body: bytes) -> None:
    with pytest.raises(InvalidBodyError, match="not valid JSON"):
        parse(RECALL_REQUEST, body)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"1e-400"])
@pytest.mark.parametrize("field", ["top_k", "seed", "user_id", "exclude_seen", "unknown"])
def test_numbers_that_json_does_not_have_end_as_a_clean_refusal(number: bytes, field: str) -> None:
    body = b'{"user_id": "u", "%s": %s}' % (field.encode(), number)
    with pytest.raises(ServiceError) as refused:
        parse(RECALL_REQUEST, body)
    assert 400 <= refused.value.status < 500
    orjson.loads(render(refused.value.problem("r")))


def test_events_are_one_or_a_list() -> None:
    one = b'{"user_id": "u", "item_id": 7, "timestamp": 1700000000}'
    assert parse(EVENT, one).timestamp == 1700000000
    assert len(parse(EVENTS, b"[" + one + b"," + one + b"]")) == 2
    with pytest.raises(InvalidFieldsError):
        parse(EVENTS, b"[]")
    with pytest.raises(InvalidFieldsError):
        parse(EVENTS, b"[" + b",".join([one] * 1001) + b"]")


def test_a_batch_refuses_its_wrong_members_alone() -> None:
    batch = parse(
        RECALL_BATCH_REQUEST, b'{"requests": [{"user_id": "a"}, {"user_id": true}, 7, {"user_id": "b"}]}'
    )
    assert [type(member) for member in batch.requests] == [RecallRequest, Refused, Refused, RecallRequest]


@pytest.mark.parametrize("count", [0, 257])
def test_a_batch_is_bounded(count: int) -> None:
    with pytest.raises(InvalidFieldsError, match="requests"):
        parse(RECALL_BATCH_REQUEST, json.dumps({"requests": [{"user_id": "u"}] * count}).encode())


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    ["user_id", "top_k", "seed", "sequence", "exclude_item_ids", "item_id", "timestamp", "requests"]
)


def assert_taken_or_refused(schema: TypeAdapter[Any], body: bytes) -> None:
    """A refusal is a 4xx whose problem document is small and valid JSON."""
    try:
        parse(schema, body)
    except ServiceError as error:
        refusal = error
    else:
        return
    rendered = render(refusal.problem("r"))
    assert refusal.status in (400, 422)
    assert len(rendered) < 10_000
    assert orjson.loads(rendered)["detail"]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([RECALL_REQUEST, RECALL_BATCH_REQUEST, EVENT, EVENTS]),
    ANY_JSON | st.dictionaries(FIELDS | st.text(max_size=5), ANY_JSON, max_size=5),
)
def test_any_json_is_taken_or_refused(schema: TypeAdapter[Any], document: Any) -> None:
    assert_taken_or_refused(schema, json.dumps(document).encode("utf-8", "surrogatepass"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    assert_taken_or_refused(RECALL_REQUEST, body)


@settings(max_examples=200, deadline=None)
@given(ANY_JSON | st.text(alphabet=st.characters()) | st.binary())
def test_any_value_is_shown_short_and_in_ascii(value: Any) -> None:
    shown = shorten(value)
    assert len(shown) <= 61
    assert shown.isascii() or shown.endswith("…")
