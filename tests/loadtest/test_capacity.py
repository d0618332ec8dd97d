"""The capacity model: its arithmetic by hand, and the simulated queue against what is known of queues."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from loadtest.capacity import Load, Measured, Prices, plan, simulate


def test_the_arithmetic_is_that_of_the_back_of_an_envelope() -> None:
    measured = Measured(tower_us=500, overhead_us=400, search_us=100, search_items=1e6, bytes_per_item=1000)
    found = plan(Load(86_400_000, 4e6, requests_per_user=1, peak=2), measured, Prices(1, 0), utilisation=0.5)
    assert found.peak_rps == pytest.approx(2000)
    assert found.request_us == pytest.approx(1100)  # four times the items: twice the search
    assert found.cores == math.ceil(2000 * 1100e-6 / 0.5)
    assert found.gib_per_replica == pytest.approx(0.6 + 4e9 / 2**30)
    assert found.redis_gib == pytest.approx(2 * 86_400_000 * 5000 / 2**30)
    assert found.month == pytest.approx(730 * found.cores)


def test_a_small_load_still_has_a_replica_to_restart() -> None:
    assert plan(Load(10, 10)).cores == 2


def test_one_at_a_time_is_the_queue_of_the_books() -> None:
    """M/D/1, by its median and its tail."""
    idle = simulate(1, sample_us=1000, batch_us=0, max_batch=1, num_requests=20_000)
    assert (idle.p50_ms, idle.batch) == (pytest.approx(1, rel=1e-3), 1)
    half = simulate(500, sample_us=1000, batch_us=0, max_batch=1)
    # Half the requests find the core free. The tail of waiting is C exp(-θ t) with ρ (exp θ - 1) = θ,
    # C = (1 - ρ) / (ρ exp θ - 1), in services: θ = 1.2564 and C = 0.661 for ρ = 0.5.
    assert half.p50_ms == pytest.approx(1, rel=0.05)
    assert half.p99_ms == pytest.approx(1 + math.log(0.661 / 0.01) / 1.2564, rel=0.03)


def test_batches_grow_with_the_load_and_share_what_is_once_a_batch() -> None:
    light = simulate(100, sample_us=100, batch_us=1000)
    heavy = simulate(4000, sample_us=100, batch_us=1000)
    assert light.batch < 1.2 < 4 < heavy.batch  # 4000/s would take 4.4 cores one at a time


@pytest.mark.parametrize("rate", [0, -1, 1e6])
def test_a_rate_without_a_steady_state_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="steady state"):
        simulate(rate, sample_us=1000, batch_us=0)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--users", "1e8"], "100,000,000"),
    ([], "1,000,000,000"),
    (["--utilisation", "1.5"], "between 0 and 1"),
    (["--users", "-1"], "must be positive"),
])  # fmt: skip
def test_the_command_prints_a_table_or_one_line(arguments: list[str], said: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "loadtest.cli", "capacity", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
