"""Tonight's log: its window, yesterday's numbering, and what the newest day asks."""

from __future__ import annotations

import numpy as np
import pytest

from model.batch import UNKNOWN_TIME
from model.data.interactions import DataError, Interactions
from model.data.newest_day import DAY_SECONDS, newest_day_split, with_vocabulary, within

NOON = 1_700_000_000


def log_of(users: list[list[tuple[str, float]]], days: bool = True) -> Interactions:
    """Each user's (item id, day) in order."""
    item_ids = list(dict.fromkeys(item for user in users for item, _ in user))
    return Interactions.create(
        user_ids=[f"u{number}" for number in range(len(users))],
        item_ids=item_ids,
        offsets=np.concatenate([[0], np.cumsum([len(user) for user in users])]).astype(np.int64),
        item_index=np.array([item_ids.index(i) + 1 for user in users for i, _ in user], dtype=np.int32),
        timestamp=np.array(
            [NOON + int(day * DAY_SECONDS) if days else UNKNOWN_TIME for user in users for _, day in user]
        ),
    )


def named(log: Interactions) -> dict[str, list[str]]:
    return {
        user: [log.item_ids[item - 1] for item in log.sequence(number).item_index]
        for number, user in enumerate(log.user_ids)
    }


USERS = [
    [("a", 0.0), ("b", 1.0), ("c", 2.0), ("d", 4.5)],
    [("b", 0.0), ("a", 4.9)],
    [("e", 5.0)],
    [("c", 3.0), ("b", 3.1), ("a", 3.2)],
]


def test_the_window_keeps_the_latest_days_before_a_moment():
    log = within(log_of(USERS), until=NOON + 4 * DAY_SECONDS, days=2.0)
    assert named(log) == {"u0": ["c"], "u3": ["c", "b", "a"]}
    assert log.item_ids == ["a", "b", "c"]
    assert log.timestamp.tolist() == [NOON + int(day * DAY_SECONDS) for day in (2.0, 3.0, 3.1, 3.2)]
    assert named(within(log_of(USERS))) == named(log_of(USERS))


def test_a_window_without_rows_or_times_is_an_error():
    with pytest.raises(DataError, match="no interaction lies before 7"):
        within(log_of(USERS), until=7)
    with pytest.raises(DataError, match="this log has none: name its --timestamp-column"):
        within(log_of(USERS, days=False))


def test_known_items_keep_their_index_and_new_ones_follow():
    log = log_of(USERS)
    known = ["gone", "c", "a"]
    numbered = with_vocabulary(log, known, {name: row for row, name in enumerate(known, 1)}, added=["x", "b"])
    assert numbered.item_ids == ["gone", "c", "a", "b", "d", "e", "x"]
    assert named(numbered) == named(log)
    assert numbered.item_index[:4].tolist() == [3, 4, 2, 5]


def test_the_newest_day_is_asked_and_nothing_of_it_is_trained_on():
    split = newest_day_split(log_of(USERS), validation_share=0.5)
    assert named(split.train) == {"u0": ["a", "b"], "u1": ["b"], "u2": [], "u3": ["c", "b", "a"]}
    ids = split.test.interactions.item_ids
    assert [split.validation.user.tolist(), [ids[i - 1] for i in split.validation.target]] == [[0], ["c"]]
    # d was never consumed before the newest day, e's user has no history
    assert [split.test.user.tolist(), [ids[i - 1] for i in split.test.target]] == [[1], ["a"]]
    asked = split.test.sequence(0)
    assert [ids[i - 1] for i in asked.item_index] == ["b"]
    assert asked.request_time == NOON + int(4.9 * DAY_SECONDS)


def test_an_item_known_from_earlier_nights_is_asked_for():
    log = log_of(USERS)
    assert log.item_ids.index("d") == 3
    split = newest_day_split(log, num_known=4)
    assert split.test.user.tolist() == [0, 1]


def test_without_users_to_validate_on_there_is_no_night():
    with pytest.raises(DataError, match="no user has 3 interactions before the newest day"):
        newest_day_split(log_of([[("a", 0.0), ("b", 1.0)]]))


def test_a_log_of_one_moment_has_only_a_newest_day():
    with pytest.raises(DataError, match="no user has 3 interactions before the newest day"):
        newest_day_split(log_of([[("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 0.0)]]))
