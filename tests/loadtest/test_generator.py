"""What the generator reads from an answer."""

from __future__ import annotations

import pytest

from loadtest.generator import parse_server_timing, user_id


def test_the_services_timing_header_is_read():
    header = 'store;dur=0.123, queue;dur=1.5, tower;dur=8, search;dur=0.25, total;dur=12.75, batch;desc="8"'
    assert parse_server_timing(header) == {
        "store": 0.123,
        "queue": 1.5,
        "tower": 8.0,
        "search": 0.25,
        "total": 12.75,
        "batch": 8.0,
    }


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", {}),
        ("tower", {}),
        ("tower;dur=fast, search;dur=2", {"search": 2.0}),
        ("tower;dur=nan, search;dur=inf", {}),
        ("tower ; desc=eager ; dur = 2.5", {"tower": 2.5}),
        ('cache;desc="hit, warm", tower;dur=1', {"tower": 1.0}),
    ],
)
def test_entries_without_a_number_are_left_out_and_never_raise(header, found):
    assert parse_server_timing(header) == found


def test_load_test_users_are_numbered_with_six_digits():
    assert user_id(1) == "loadtest-user-000001"
    assert user_id(123456) == "loadtest-user-123456"
