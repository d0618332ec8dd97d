"""How often and how many at once: a bucket that refills, and places that always leave one for a newcomer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.quotas import FairPlaces, Holder, TokenBucket


def test_a_burst_passes_at_once_and_then_the_rate() -> None:
    bucket = TokenBucket(10.0, 3.0, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)]
    assert bucket.take(100.05) == pytest.approx(0.05)
    assert bucket.take(100.1001) == 0.0
    assert [bucket.take(200.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)], (
        "no more than a burst"
    )


def test_what_is_charged_later_is_waited_for_by_the_next() -> None:
    bucket = TokenBucket(10.0, 5.0, now=0.0)
    assert bucket.take(0.0) == 0.0
    bucket.charge(24)  # a batch of 25
    assert bucket.take(0.0) == pytest.approx(2.1)
    assert bucket.take(2.0) > 0
    assert bucket.take(2.11) == 0.0


def test_a_changed_quota_holds_from_then_on() -> None:
    bucket = TokenBucket(10.0, 5.0, now=0.0)
    bucket.change(1.0, 2.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, pytest.approx(1.0)]
    bucket.change(100.0, 200.0, now=0.0)
    assert bucket.take(0.0) == pytest.approx(0.01), "a change is no gift"


@given(
    rate=st.floats(0.1, 1000),
    burst=st.floats(1, 100),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_no_timing_gets_more_than_the_rate_and_one_burst(
    rate: float, burst: float, gaps: list[float]
) -> None:
    bucket = TokenBucket(rate, burst, now=0.0)
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now) == 0.0
        assert taken <= burst + rate * now + 1e-6


def test_one_alone_gets_half_of_the_places_and_two_about_a_third_each() -> None:
    places = FairPlaces(12)
    one, two = Holder(), Holder()
    while places.enter(one):
        pass
    assert one.held == 6
    assert (places.left_for(one), places.left_for(two)) == (0, 3)
    while places.enter(two):
        pass
    assert two.held == 3
    for _ in range(20):  # both go on asking as places come free: neither keeps what it had first
        for holder in (one, two):
            places.leave(holder)
            places.enter(one)
            places.enter(two)
    assert {one.held, two.held} <= {4, 5}
    assert places.taken <= 9, "and as many stay free"


def test_when_there_are_fewer_places_for_a_while_fewer_are_shared() -> None:
    now = 100.0
    places = FairPlaces(12, places_now=lambda: now)
    one, two = Holder(), Holder()
    for _ in range(4):
        assert places.enter(one)
    now = 6.0
    assert not places.enter(one)
    assert places.left_for(two) == 1
    assert [places.enter(two), places.enter(two)] == [True, False]
    now = 2.0
    assert not places.enter(Holder()), "there is none left"
    assert places.left_for(two) == 0
    for _ in range(4):
        places.leave(one)
    assert places.enter(Holder())


@given(
    num_places=st.integers(64, 300),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(1, 200)), max_size=60),
)
def test_whatever_five_others_hold_a_newcomer_finds_a_place(
    num_places: int, steps: list[tuple[bool, int, int]]
) -> None:
    places = FairPlaces(num_places)
    holders = [Holder() for _ in range(5)]
    for entering, number, times in steps:
        for _ in range(times):
            if entering:
                places.enter(holders[number])
            elif holders[number].held:
                places.leave(holders[number])
        assert places.taken == sum(holder.held for holder in holders)
        newcomer = Holder()
        assert places.enter(newcomer)
        places.leave(newcomer)
