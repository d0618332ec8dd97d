"""The short version of the swap stress test: bundles published in turn while requests arrive steadily."""

from __future__ import annotations

from loadtest.stress.outcome import Options
from loadtest.stress.swap import SHORT, swap_figures


def test_ten_swaps_at_a_steady_rate_fail_no_request_and_mix_no_answer() -> None:
    figures = swap_figures(SHORT, Options())
    assert figures["num_swaps"] == 10
    assert figures["num_requests"] > SHORT.rate * SHORT.interval_s * SHORT.num_swaps
    assert (figures["num_not_200"], figures["num_mixed"]) == (0, 0)
    assert min(figures["answers_by_bundle"].values()) > 20, "both bundles have answered"
    gained = {one["name"]: one for one in figures["checks"] if "gained" in one["name"]}
    assert all(one["passed"] for one in gained.values()), gained
