"""API keys: their form, what is kept of them, the file, and that no message repeats what the file holds."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api_keys import (
    KEY_LENGTH,
    ApiKeysError,
    KeyRing,
    decode_keys,
    encode_keys,
    key_id_of,
    new_key,
)
from service.keys_file import change_keys, read_keys

KEY, KEPT = new_key("ranker", ["events", "recall"], rate=100.0, burst=20)


def test_a_key_is_found_by_itself_and_by_nothing_else() -> None:
    other, _ = new_key("ranker", ["recall"])
    ring = KeyRing([KEPT])
    found = ring.find(KEY.encode())
    assert found is not None
    assert (found.caller, found.scopes) == ("ranker", {"recall", "events"})
    assert len(KEY) == KEY_LENGTH
    assert ring.find(other.encode()) is None
    assert KeyRing([]).find(KEY.encode()) is None


@given(place=st.integers(0, KEY_LENGTH - 1), byte=st.integers(0, 255))
def test_a_key_with_one_character_changed_opens_nothing(place: int, byte: int) -> None:
    changed = bytearray(KEY.encode())
    same = changed[place] == byte
    changed[place] = byte
    assert (KeyRing([KEPT]).find(bytes(changed)) is not None) is same


@given(st.binary(max_size=200))
def test_no_bytes_trip_the_ring(given_bytes: bytes) -> None:
    ring = KeyRing([KEPT])
    assert ring.find(given_bytes) is None
    assert ring.find(KEY.encode() + given_bytes + b"x") is None


def test_the_right_name_with_another_secret_opens_nothing() -> None:
    other, _ = new_key("ranker", ["recall"])
    assert KeyRing([KEPT]).find((KEY[:20] + other[20:]).encode()) is None


def test_the_entry_of_nobody_cannot_be_found() -> None:
    """What an unknown name is compared with is no key."""
    unknown = b"t2diff_" + b"f" * 12 + b"_" + b"A" * 43
    assert KeyRing([]).find(unknown) is None


def test_two_keys_are_never_alike_and_the_file_holds_neither(tmp_path: Path) -> None:
    made = [new_key("ranker", ["recall"]) for _ in range(200)]
    assert len({key for key, _ in made}) == len({kept.key_id for _, kept in made}) == 200
    file = tmp_path / "keys"
    change_keys(file, lambda keys: tuple(kept for _, kept in made), create=True)
    text = file.read_text()
    assert not any(key in text or key[20:] in text for key, _ in made)
    assert [kept.key_id for kept in read_keys(file)] == [kept.key_id for _, kept in made]


def test_a_file_reads_back_as_it_was_written() -> None:
    expires = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    _, late = new_key("nightly.job", ["admin"], expires=expires)
    assert decode_keys(encode_keys([KEPT, late])) == (KEPT, late)
    assert decode_keys(encode_keys([])) == ()
    assert late.expired(expires)
    assert not late.expired(expires - timedelta(seconds=1))
    assert not KEPT.expired(expires)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": KEY}, "line 2: sha256: must be 64 hexadecimal digits"),
        ({"sha256": None}, "line 2: sha256: is required"),
        ({"key_id": KEY}, "line 2: key_id: must be 12 hexadecimal digits"),
        ({"caller": f"a {KEY}"}, "line 2: caller: must consist of"),
        ({"caller": "new\nline"}, "line 2: caller: must consist of"),
        ({"scopes": [KEY]}, "line 2: scopes: must be a list of recall, events, admin, metrics"),
        ({"scopes": []}, "line 2: scopes: must be a list"),
        ({"rate": 0}, "line 2: rate: must be requests a second"),
        ({"rate": True}, "line 2: rate: must be requests a second"),
        ({"rate": 1e400}, "line 2: "),
        ({"burst": 0.5}, "line 2: burst: must be a whole number"),
        ({"expires": "2030-01-01T00:00:00"}, "line 2: expires: must be a date and time with its zone"),
        ({"expires": KEY}, "line 2: expires: must be a date and time with its zone"),
        ({KEY: 1}, "line 2: has an unknown field"),
    ],
)
def test_a_wrong_line_is_told_by_number_and_field_and_never_repeated(
    change: dict[str, object], message: str
) -> None:
    line = json.loads(KEPT.model_dump_json(exclude_none=True)) | change
    line = {name: value for name, value in line.items() if value is not None}
    data = encode_keys([]) + json.dumps(line).encode() + b"\n"
    with pytest.raises(ApiKeysError) as error:
        decode_keys(data)
    assert str(error.value).startswith(message)
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its first line"),
        (b"\n", "its first line"),
        (KEY.encode(), "its first line"),
        (b'{"t2diff_api_keys":2}\n', "its first line"),
        (encode_keys([KEPT])[:-20], "line 2"),
        (encode_keys([KEPT]) + KEY.encode(), "line 3: it is not JSON"),
        (encode_keys([KEPT, KEPT]), "line 3: there are two keys of this key_id"),
        (encode_keys([]) + b"x\n" * 1001, "it holds more than 1000 keys"),
        (b"\xff\xfe", "its first line"),
        (encode_keys([]) + b'{"key_id":"\xff"}', "line 2"),
        (encode_keys([]) + b"[" * 100_000, "line 2"),
    ],
    ids=map(str, range(20)),  # a key is random, and both workers must name the cases alike
)
def test_a_file_that_is_none_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ApiKeysError) as error:
        decode_keys(data)
    assert str(error.value).startswith(message)
    assert KEY not in str(error.value)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes) -> None:
    for text in (data, encode_keys([]) + data):
        with suppress(ApiKeysError):
            decode_keys(text)


def test_a_key_is_named_by_itself_or_by_its_id() -> None:
    assert key_id_of(KEY) == key_id_of(KEPT.key_id) == KEPT.key_id


def test_a_caller_that_cannot_be_a_label_gets_no_key() -> None:
    for caller in ("", "a b", "x" * 65, "ü", 'a"'):
        with pytest.raises(ApiKeysError, match="caller: must consist of 1 to 64"):
            new_key(caller, ["recall"])


@pytest.mark.parametrize(
    ("rate", "burst", "effective"), [(100.0, None, 100.0), (0.1, None, 1.0), (5.0, 50, 50.0)]
)
def test_without_a_burst_it_is_one_seconds_worth_and_at_least_one(
    rate: float, burst: int | None, effective: float
) -> None:
    _, kept = new_key("c", ["recall"], rate=rate, burst=burst)
    assert kept.effective_burst == effective
