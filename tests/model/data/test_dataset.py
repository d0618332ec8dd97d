"""Splits: the last events are asked for, and nothing asked for is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.batch import UNKNOWN_TIME
from model.data.dataset import EvaluationSet, Split, global_time, leave_one_out
from model.data.interactions import DataError, Interactions


def log_of(times: list[list[int]]) -> Interactions:
    """A log with these times per user; the item of row r is number r, so that every row can be told apart."""
    count = [len(mine) for mine in times]
    timestamp = np.array([time for mine in times for time in sorted(mine)], dtype=np.int64)
    return Interactions.create(
        user_ids=[f"u{user}" for user in range(len(times))],
        item_ids=[f"i{row}" for row in range(len(timestamp))],
        offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        item_index=np.arange(1, len(timestamp) + 1, dtype=np.int32),
        timestamp=timestamp,
    )


logs = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=8).map(log_of)


def assert_consistent(split: Split, log: Interactions) -> None:
    """What every split promises."""
    train = split.train
    assert (train.user_ids, train.item_ids) == (log.user_ids, log.item_ids)
    for user in range(log.num_users):  # each user's training rows are that user's oldest
        sequence, whole = train.sequence(user), log.sequence(user)
        np.testing.assert_array_equal(sequence.item_index, whole.item_index[: len(sequence.item_index)])
        np.testing.assert_array_equal(sequence.timestamp, whole.timestamp[: len(sequence.timestamp)])
    for part in (split.validation, split.test):
        assert part.interactions is log
        assert len(set(part.user.tolist())) == len(part)
        for question in range(len(part)):
            user, end = int(part.user[question]), int(part.end[question])
            asked = part.sequence(question)
            np.testing.assert_array_equal(asked.item_index, log.item_index[log.offsets[user] : end])
            assert len(asked.item_index) >= 1
            assert end < log.offsets[user + 1]
            assert part.target[question] == log.item_index[end]
            assert part.target_time[question] == asked.request_time == log.timestamp[end]
            assert part.target[question] not in train.sequence(user).item_index  # items are unique here
            assert part.target[question] not in asked.item_index


@settings(max_examples=200, deadline=None)
@given(log=logs)
def test_leave_one_out_asks_for_the_last_row_then_the_one_before(log):
    count = np.diff(log.offsets)
    assume((count >= 3).any())
    split = leave_one_out(log)
    assert_consistent(split, log)
    assert split.test.user.tolist() == split.validation.user.tolist() == np.flatnonzero(count >= 3).tolist()
    for question, user in enumerate(split.test.user):
        whole = log.sequence(int(user)).item_index
        assert split.test.target[question] == whole[-1]
        assert split.validation.target[question] == whole[-2]
        assert len(split.train.sequence(int(user)).item_index) == len(whole) - 2
    for user in np.flatnonzero(count < 3):
        assert len(split.train.sequence(int(user)).item_index) == count[user]


@settings(max_examples=300, deadline=None)
@given(log=logs, shares=st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45)))
def test_global_time_trains_on_nothing_younger_than_what_it_asks_for(log, shares):
    try:
        split = global_time(log, *shares)
    except DataError:
        return  # some part would be empty: the tests below say when
    assert_consistent(split, log)
    youngest = split.train.timestamp.max()
    assert youngest < split.validation.target_time.min()
    assert split.validation.target_time.max() < split.test.target_time.min()
    for part, period_ends in ((split.validation, split.test.target_time.min()), (split.test, np.inf)):
        asked = dict(zip(part.user.tolist(), part.end.tolist(), strict=True))
        for user in range(log.num_users):
            whole = log.sequence(user).timestamp
            if user not in asked:
                continue
            before = asked[user] - int(log.offsets[user])
            assert whole[before] < period_ends
            assert before == 0 or whole[before - 1] < whole[before]  # the first of the period


def test_global_time_by_hand():
    log = log_of([[1, 2, 3, 4, 5, 6, 7, 8], [2, 9, 10], [10], [1, 1]])
    split = global_time(log, validation_share=0.2, test_share=0.2)  # 14 rows: cuts at 6 and 9
    assert split.train.timestamp.max() == 5
    assert np.diff(split.train.offsets).tolist() == [5, 1, 0, 2]
    assert (split.validation.user.tolist(), split.validation.target_time.tolist()) == ([0], [6])
    assert (split.test.user.tolist(), split.test.target_time.tolist()) == ([1], [9])
    assert split.test.sequence(0).timestamp.tolist() == [2]
    assert (split.name, split.train.report[-1].users) == ("global_time", 3)


def test_repeated_items_may_be_asked_for_again():
    log = log_of([[1, 2, 3, 4]])
    repeated = Interactions.create(
        user_ids=["u"],
        item_ids=["i"],
        offsets=log.offsets,
        item_index=np.ones(4, dtype=np.int32),
        timestamp=log.timestamp,
    )
    split = leave_one_out(repeated)
    assert split.test.target.tolist() == [1]
    assert len(split.train) == 2


def test_a_log_without_times_can_be_left_one_out_but_not_cut_in_time():
    log = log_of([[UNKNOWN_TIME] * 4])
    assert len(leave_one_out(log).test) == 1
    with pytest.raises(DataError, match="needs times, and this log has none: use leave-one-out"):
        global_time(log)


def test_splits_that_leave_nothing_are_refused():
    with pytest.raises(DataError, match="a user with at least 3 interactions"):
        leave_one_out(log_of([[1, 2], [3]]))
    with pytest.raises(DataError, match="leaves no train part"):
        global_time(log_of([[5, 5, 5, 5, 5]]))
    with pytest.raises(DataError, match="leaves no validation part"):
        global_time(log_of([[number] for number in range(20)]))
    for shares in ((0.5, 0.5), (0.0, 0.1), (0.1, -0.1), (float("nan"), 0.1)):
        with pytest.raises(DataError, match="validation_share and test_share must be above 0"):
            global_time(log_of([[1, 2, 3]]), *shares)


def test_an_evaluation_set_counts_its_questions():
    log = log_of([[1, 2, 3], [4, 5, 6]])
    part = leave_one_out(log).test
    assert isinstance(part, EvaluationSet)
    assert len(part) == 2
