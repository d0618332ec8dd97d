"""The rolling restarts in short, and that their judge can fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from loadtest.generator import CONNECTION_FAILED, Samples
from loadtest.stress.outcome import Options, passed
from loadtest.stress.restarts import SHORT, Restart, restart_figures, summarise


def test_no_request_fails_while_a_service_restarts_behind_a_proxy() -> None:
    figures = restart_figures(SHORT, Options(short=True))
    assert figures["num_failed"] == 0, figures
    assert figures["num_restarts"] == SHORT.num_restarts
    assert figures["num_requests"] > 0


OK = [Restart(100.5, 101.5, 103.0, 0), Restart(201.0, 202.0, 203.0, 0)]


@pytest.mark.parametrize(
    ("status", "restarts", "holds"),
    [
        (200, OK, True),
        (502, OK, False),
        (429, OK, False),
        (CONNECTION_FAILED, OK, False),
        (200, OK[:1], False),
        (200, [OK[0], OK[1]._replace(status=-9)], False),
        (200, [OK[0], OK[1]._replace(began=199.9)], False),
        (200, [OK[0], OK[1]._replace(back=204.0)], False),
        (200, [OK[0], OK[1]._replace(began=180.0, back=203.5, ended=196.0)], False),
    ],
)
def test_the_judge_sees_a_failed_request_a_restart_without_load_and_an_end_by_force(
    samples: Callable[..., Samples], status: int, restarts: list[Restart], holds: bool
) -> None:
    statuses = np.full(40, 200, np.int16)
    statuses[17] = status
    stretches = [samples(40, started=100.0), samples(40, started=200.0, status=statuses)]
    assert passed(summarise(stretches, 2, restarts)["checks"]) is holds
