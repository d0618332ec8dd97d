"""The manifest's section `data`, and what the gates make of two of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index_builder.gate_limits import GateLimits
from index_builder.log_summary import check_log, of_newest_day, summarise_log
from index_builder.quality import Check
from model.batch import UNKNOWN_TIME
from model.data.dataset import leave_one_out
from model.data.interactions import Interactions

NOW = 1_800_000_000
HOUR = 3_600


def log_of(*users: list[tuple[int, int]]) -> Interactions:
    """Each user a list of (item index, hours before NOW), oldest first."""
    rows = [row for user in users for row in user]
    return Interactions.create(
        user_ids=[f"u{number}" for number in range(len(users))],
        item_ids=[f"i{number}" for number in range(1, 6)],
        offsets=np.cumsum([0, *map(len, users)]),
        item_index=np.array([item for item, _ in rows], dtype=np.int32),
        timestamp=np.array([NOW - hours * HOUR for _, hours in rows], dtype=np.int64),
    )


LOG = log_of([(1, 90), (2, 50), (3, 5)], [(1, 80), (1, 23), (4, 23), (1, 2)], [(5, 70), (5, 60), (5, 25)])


def test_a_log_is_summed_up():
    assert summarise_log(LOG, now=NOW) == {
        "users": 3,
        "items": 5,
        "interactions": 10,
        "newest": NOW - 2 * HOUR,
        "oldest": NOW - 90 * HOUR,
        "top_time_share": 0.2,  # the two of 23 hours ago
        "newest_day": {
            "users": 2,
            "items": 3,
            "interactions": 4,
            "top_item_share": 0.5,  # item 1, twice of four
            "top_user_share": 0.75,
        },
    }


def test_the_newest_day_ends_now_and_leaves_out_what_is_dated_ahead():
    ahead = log_of([(1, 90), (2, 50), (3, -8_760)], [(1, 80), (1, 23), (4, 2)])
    assert summarise_log(ahead, now=NOW)["newest_day"]["interactions"] == 2
    assert summarise_log(ahead, now=NOW)["newest"] == NOW + 8_760 * HOUR


def test_of_an_old_log_the_newest_day_ends_with_it():
    summary = summarise_log(LOG, now=NOW + 1_000 * HOUR)
    assert summary["newest_day"]["interactions"] == 5  # with the one of 25 hours ago
    assert len(of_newest_day(leave_one_out(LOG).test, now=NOW + 1_000 * HOUR)) == 3


def test_the_questions_of_the_newest_day_are_those_whose_target_lies_in_it():
    questions = of_newest_day(leave_one_out(LOG).test, now=NOW)
    assert questions.target.tolist() == [3, 1]
    assert questions.user.tolist() == [0, 1]


def outcomes(data: dict[str, Any] | None, last: dict[str, Any] | None, now: int = NOW) -> dict[str, Check]:
    return {check.name: check for check in check_log(data, last, GateLimits(), now=now)}


def refusals(data: dict[str, Any], last: dict[str, Any], now: int = NOW) -> list[str]:
    return [name for name, check in outcomes(data, last, now).items() if check.refused]


def summary(**changed: Any) -> dict[str, Any]:
    """Of a sound log; `day_` before a name changes its newest day."""
    whole = {
        "users": 900,
        "items": 50,
        "interactions": 9_000,
        "newest": NOW,
        "oldest": 0,
        "top_time_share": 0.01,
    }
    day = {"users": 100, "items": 40, "interactions": 500, "top_item_share": 0.02, "top_user_share": 0.03}
    for name, value in changed.items():
        (day if name.startswith("day_") else whole)[name.removeprefix("day_")] = value
    return whole | {"newest_day": day}


@pytest.mark.parametrize(
    ("changed", "refused_by"),
    [
        ({}, []),
        ({"newest": NOW - 24 * HOUR}, []),
        ({"newest": NOW - 24 * HOUR - 1}, ["log_age_hours"]),
        ({"newest": NOW + HOUR}, []),
        ({"newest": NOW + HOUR + 1}, ["log_age_hours"]),
        ({"top_time_share": 0.31}, ["log_top_time_share"]),
        ({"users": 449}, ["log_users_ratio"]),
        ({"interactions": 18_001}, ["log_interactions_ratio"]),
        ({"day_users": 24}, ["newest_day_users_ratio"]),
        ({"day_users": 25}, []),
        ({"day_interactions": 2_001}, ["newest_day_interactions_ratio"]),
        ({"day_top_item_share": 0.9}, ["newest_day_top_item_share"]),
        ({"day_top_user_share": 1.0}, ["newest_day_top_user_share"]),
    ],
)
def test_a_log_beyond_a_limit_is_refused_by_that_gate_alone(changed, refused_by):
    assert refusals(summary(**changed), summary(newest=NOW - 30 * HOUR)) == refused_by


def test_a_log_that_ends_before_the_last_one_is_refused_and_the_same_log_again_is_not():
    assert refusals(summary(newest=NOW - 1), summary(newest=NOW)) == ["log_hours_after_last"]
    assert refusals(summary(), summary()) == []


def test_a_message_names_figure_limit_and_remedy():
    message = str(outcomes(summary(day_users=10), summary())["newest_day_users_ratio"])
    assert message == (
        "newest_day_users_ratio is 0.1 (10 users, 100 last time), must be at least 0.25 and at most 4; see "
        "whether part of the log is missing or came twice (min_day_ratio, max_day_ratio)"
    )


def test_what_cannot_be_compared_is_skipped_with_the_reason():
    untimed = summarise_log(
        Interactions.create(
            user_ids=["u"],
            item_ids=["i"],
            offsets=np.array([0, 2]),
            item_index=np.ones(2, np.int32),
            timestamp=np.full(2, UNKNOWN_TIME),
        )
    )
    for data, last, reason in (
        (None, summary(), "the bundle's manifest has no section `data`"),
        (summary(), None, "the last bundle says nothing"),
        (untimed, summary(), "the log has no times"),
    ):
        checks = outcomes(data, last)
        assert len(checks) == 9
        skipped = checks["log_hours_after_last"]
        assert skipped.outcome == "skipped"
        assert not skipped.passed
        assert not skipped.refused
        assert skipped.skipped.startswith(reason)
        assert str(skipped).startswith("log_hours_after_last was skipped: ")
    assert outcomes(untimed, summary())["newest_day_users_ratio"].skipped == "the log has no times"
