"""The rolling restarts in short, and that their judge can fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from loadtest.generator import CONNECTION_FAILED, Samples
from loadtest.stress.outcome import Options, passed
from loadtest.stress.restarts import SHORT, restart_figures, summarise


def test_no_request_fails_while_a_service_restarts_behind_a_proxy() -> None:
    figures = restart_figures(SHORT, Options(short=True))
    assert figures["num_failed"] == 0, figures
    assert figures["num_restarts"] == SHORT.num_restarts
    assert figures["num_requests"] > 0


@pytest.mark.parametrize(
    ("status", "ended", "holds"),
    [
        (200, [(2.0, 0), (3.0, 0)], True),
        (502, [(2.0, 0), (3.0, 0)], False),
        (429, [(2.0, 0), (3.0, 0)], False),
        (CONNECTION_FAILED, [(2.0, 0), (3.0, 0)], False),
        (200, [(2.0, 0)], False),
        (200, [(2.0, 0), (3.0, -9)], False),
        (200, [(2.0, 0), (15.5, 0)], False),
    ],
)
def test_the_judge_sees_a_failed_request_a_missing_restart_and_an_end_by_force(
    samples: Callable[..., Samples], status: int, ended: list[tuple[float, int]], holds: bool
) -> None:
    statuses = np.full(40, 200, np.int16)
    statuses[17] = status
    figures = summarise([samples(40), samples(40, status=statuses)], 2, ended)
    assert passed(figures["checks"]) is holds
