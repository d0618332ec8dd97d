"""What a probe counts: against a real server that misbehaves as told, and on hand-made samples."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from loadtest.errors import LoadtestError
from loadtest.generator import TIMEOUT
from loadtest.probe import draw_up, run_probe, summarise


def test_a_stall_shows_in_every_request_that_was_due_during_it(server):
    rate, stall_s = 200, 0.3
    server.behave(stall_at=100, stall_ms=stall_s * 1e3)
    probe = run_probe(server.settings(duration_s=2.0), rate)
    assert probe.latency is not None
    assert probe.num_answers == 400
    assert probe.latency.max_ms >= stall_s * 1e3
    assert probe.latency.p99_ms >= stall_s * 1e3 / 2
    histogram = HdrHistogram.decode(probe.latency.histogram)
    late = sum(
        item.count_at_value_iterated_to
        for item in histogram.get_recorded_iterator()
        if item.value_iterated_to >= stall_s / 3 * 1e9
    )
    assert late >= rate * stall_s * 0.5


def test_requests_go_out_by_the_clock_while_earlier_answers_are_awaited(server):
    server.behave(delay_ms=400)
    probe = run_probe(server.settings(duration_s=0.4), 50)
    assert probe.num_answers == 20
    assert probe.lag is not None
    assert probe.latency is not None
    assert probe.lag.p50_ms < 400 <= probe.latency.p50_ms


def test_waiting_for_one_connection_counts_from_the_intended_time(server):
    server.behave(work_ms=20)
    probe = run_probe(server.settings(duration_s=0.5, max_connections=1), 100)
    assert probe.num_answers == 50
    assert probe.waited_for_connection > 25
    assert probe.latency is not None
    # 50 requests of 20 ms through one connection take a second; the last was due after half of one.
    assert probe.latency.max_ms >= 500


def test_a_generator_that_cannot_keep_the_rate_says_so_and_counts_its_lag_as_latency(server):
    probe = run_probe(server.settings(duration_s=0.06), 20_000)
    assert probe.num_requests == 1200
    assert probe.generator_late
    assert probe.lag is not None
    assert probe.latency is not None
    assert probe.since_sent is not None
    assert probe.latency.max_ms >= probe.lag.max_ms > 5
    assert probe.latency.p50_ms > probe.since_sent.p50_ms


def test_per_sample_compute_is_tower_and_search_shared_by_the_batch(server):
    server.behave(
        timing='store;dur=0.5, queue;dur=3, tower;dur=8, search;dur=2, total;dur=14, batch;desc="4"'
    )
    probe = run_probe(server.settings(), 40)
    assert probe.per_sample is not None
    assert probe.per_sample.count == 20
    assert probe.per_sample.p50_ms == probe.per_sample.max_ms == pytest.approx(2.5, rel=1e-3)
    assert probe.batch_sizes == ((4, 20),)
    expected = {"store": 0.5, "queue": 3, "tower": 8, "search": 2, "total": 14}
    assert {name: stage and stage.p99_ms for name, stage in probe.stages.items()} == pytest.approx(
        expected, rel=1e-3
    )


def test_answers_without_tower_times_have_no_per_sample_compute(server):
    server.behave(
        timing="store;dur=0.5, total;dur=0.6", answer={"route": "popular", "reason": "unknown user"}
    )
    probe = run_probe(server.settings(), 40)
    assert probe.per_sample is None
    assert probe.batch_sizes == ()
    assert probe.stages["store"] is not None
    assert probe.routes == {"popular (unknown user)": 20}
    assert probe.broken_by(p99_limit_ms=60_000) == []  # nobody's fault: such users are simply not known


def test_the_warm_up_is_sent_but_not_counted(server):
    server.behave(fail_first=5)
    cold = run_probe(server.settings(duration_s=0.5), 40)
    assert cold.errors == {"http 503": 5}
    server.behave(fail_first=5)
    warm = run_probe(server.settings(duration_s=0.5, warmup_s=0.5), 40)
    assert warm.errors == {}
    assert warm.num_requests == warm.num_answers == 20
    assert len(server.seen()["users"]) == 40


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ({"fail_first": 99, "fail_status": 307}, "http 307"),  # a redirect is never followed
        ({"delay_ms": 5000}, "timeout"),
        ({"answer": {"user_id": "somebody-else"}}, "not a recall answer"),
        ({"answer": {"candidates": None}}, "not a recall answer"),
    ],
)
def test_each_way_to_fail_is_counted_and_breaks_the_rate(server, how, outcome):
    server.behave(**how)
    probe = run_probe(server.settings(duration_s=0.25, timeout_ms=400.0), 40)
    assert probe.errors == {outcome: 10}
    assert probe.num_answers == probe.achieved_rate == 0
    assert f"10 × {outcome}" in probe.broken_by(p99_limit_ms=60_000)
    if outcome == "timeout":  # waited for at least so long: part of the tail
        assert probe.latency is not None
        assert probe.latency.count == 10
        assert probe.latency.p50_ms >= 400
    else:
        assert probe.latency is None


def test_a_closed_port_is_counted_as_connection_errors(server):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, never listening
        probe = run_probe(server.settings(url=f"http://127.0.0.1:{reserved.getsockname()[1]}"), 20)
    assert probe.errors == {"connection": 10}


def test_degraded_and_unexplained_short_answers_break_the_rate(server):
    server.behave(answer={"route": "popular", "degraded": True, "reason": "store"}, num_candidates=3)
    probe = run_probe(server.settings(), 40)
    assert (probe.num_answers, probe.num_degraded, probe.num_short) == (20, 20, 20)
    assert {"20 degraded", "20 short answers"} <= set(probe.broken_by(p99_limit_ms=60_000))
    server.behave(answer={"shortfall": "only 3 items exist"}, num_candidates=3)
    assert run_probe(server.settings(), 40).num_short == 0


def test_the_users_asked_for_are_the_seeded_ones(server):
    run_probe(server.settings(num_users=3, duration_s=0.3), 100)
    users = server.seen()["users"]
    assert len(users) == 30
    assert set(users) == {"loadtest-user-000001", "loadtest-user-000002", "loadtest-user-000003"}


def test_the_same_seed_asks_for_the_same_users_and_another_for_others(server):
    first, again, other = (draw_up(server.settings(seed=seed), 100).users for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_probe_that_would_send_nothing_is_refused(server):
    with pytest.raises(LoadtestError, match="lengthen the duration"):
        draw_up(server.settings(warmup_s=1.0, duration_s=0.1), 1)


def test_the_achieved_rate_counts_completions_inside_the_measured_window(samples):
    # 10/s for 2 s after 1 s of warm-up, every answer takes 1.5 s: ends in [1, 3) were due in [-0.5, 1.5).
    slow = samples(30)
    slow.ended[:] = slow.intended + 1.5
    probe = summarise(slow, rate=10, warmup_s=1, duration_s=2)
    assert probe.num_requests == 20
    assert probe.offered_rate == 10
    assert probe.achieved_rate == 7.5
    assert probe.broken_by(p99_limit_ms=2000) == ["achieved 75.0% of the rate"]


def test_one_answer_over_the_edge_of_the_window_does_not_break_a_rate(samples):
    probe = summarise(samples(20, ended=np.arange(20) / 10 + 0.15), rate=10, warmup_s=0, duration_s=2)
    assert probe.achieved_rate == 9.5
    assert probe.broken_by(p99_limit_ms=1000) == []


def test_a_p99_over_the_limit_breaks_a_rate_and_at_the_limit_does_not(samples):
    probe = summarise(samples(20), rate=10, warmup_s=0, duration_s=2)
    assert probe.latency is not None
    assert probe.broken_by(p99_limit_ms=probe.latency.p99_ms) == []
    assert probe.broken_by(p99_limit_ms=9.9) == ["p99 10.0 ms"]


def test_timeouts_stay_in_the_tail_while_other_failures_are_left_out_of_latency(samples):
    status = np.full(20, 200, np.int16)
    status[3], status[4] = TIMEOUT, 503
    ended = np.arange(20) / 10 + 0.010
    ended[3] += 2.0
    probe = summarise(samples(20, status=status, ended=ended), rate=10, warmup_s=0, duration_s=2)
    assert probe.latency is not None
    assert probe.latency.count == 19
    assert probe.latency.max_ms == pytest.approx(2010)
    assert probe.errors == {"timeout": 1, "http 503": 1}


def test_the_median_of_two_batches_weighs_each_by_its_members(samples):
    # One batch of 3 that took 6 ms, one of 1 that took 5 ms: four samples at 2, 2, 2 and 5 ms.
    stages = np.full((4, 5), np.nan)
    stages[:, 2] = [0.004, 0.004, 0.004, 0.004]
    stages[:, 3] = [0.002, 0.002, 0.002, 0.001]
    batch = np.array([3, 3, 3, 1], np.int32)
    probe = summarise(samples(4, stages_s=stages, batch_size=batch), rate=10, warmup_s=0, duration_s=0.4)
    assert probe.per_sample is not None
    assert probe.per_sample.p50_ms == pytest.approx(2, rel=1e-3)
    assert probe.per_sample.max_ms == pytest.approx(5, rel=1e-3)
    assert probe.batch_sizes == ((1, 1), (3, 3))
