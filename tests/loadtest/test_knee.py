"""The search for the highest rate that holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.knee import find_knee
from loadtest.probe import run_probe, summarise


@pytest.fixture
def service_with_knee(samples):
    """A probe function of an ideal service that holds exactly the rates up to a given one."""
    good = summarise(samples(20), rate=10, warmup_s=0, duration_s=2)

    def make(knee, hiccups=()):
        hiccups = list(hiccups)

        def probe(rate):
            if rate in hiccups:
                hiccups.remove(rate)
                return replace(good, asked_rate=rate, errors={"timeout": 1})
            return replace(good, asked_rate=rate, errors={} if rate <= knee else {"http 429": 3})

        return probe

    return make


@pytest.mark.parametrize("knee", [3.0, 51.0, 100.0, 333.0, 1999.0])
@pytest.mark.parametrize("start", [50.0, 100.0])
def test_the_knee_is_bracketed_to_the_resolution(service_with_knee, knee, start):
    found = find_knee(service_with_knee(knee), start_rate=start, max_rate=4000, p99_limit_ms=100)
    assert found.highest_held <= knee < found.lowest_broken
    assert found.lowest_broken <= found.highest_held * 1.1


def test_every_probe_is_reported_in_the_order_run(service_with_knee):
    found = find_knee(service_with_knee(90), start_rate=50, max_rate=4000, p99_limit_ms=100, resolution=0.3)
    assert [probe.asked_rate for probe in found.probes] == [50, 100, 100, 75, 87.5]


def test_one_hiccup_does_not_decide(service_with_knee):
    found = find_knee(
        service_with_knee(1000, hiccups=[50, 200]), start_rate=50, max_rate=4000, p99_limit_ms=100
    )
    assert found.highest_held > 900
    assert [probe.asked_rate for probe in found.probes][:5] == [50, 50, 100, 200, 200]


def test_the_search_stops_at_the_maximum_rate(service_with_knee):
    found = find_knee(service_with_knee(1e9), start_rate=50, max_rate=120, p99_limit_ms=100)
    assert [probe.asked_rate for probe in found.probes] == [50, 100, 120]
    assert (found.highest_held, found.lowest_broken) == (120, None)


def test_a_service_that_holds_nothing_ends_at_the_lowest_rate(service_with_knee):
    found = find_knee(service_with_knee(0), start_rate=8, max_rate=120, p99_limit_ms=100, attempts=1)
    assert [probe.asked_rate for probe in found.probes] == [8, 4, 2, 1]
    assert (found.highest_held, found.lowest_broken) == (None, 1)


def test_a_real_server_cannot_hold_more_than_its_work_allows(server):
    server.behave(work_ms=10)  # one at a time: at most 100/s, whatever the machine
    found = find_knee(
        lambda rate: run_probe(server.settings(duration_s=0.7, warmup_s=0.1), rate),
        start_rate=40,
        max_rate=320,
        p99_limit_ms=200,
        resolution=1.0,
        attempts=1,
    )
    assert found.highest_held is not None
    assert found.highest_held <= 120
    assert found.lowest_broken is not None
    assert found.probes[-1].broken_by(200) or found.highest_held == found.probes[-1].asked_rate
