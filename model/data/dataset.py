"""Splits: what is trained on, and which next item each user is asked for.

Training rows never hold an evaluated target, and a target's prefix is what had happened before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.batch import Sequence
from model.data.interactions import DataError, Interactions, RuleCount


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Q questions "what did this user consume next?".

    interactions: the whole log   user: (Q,) int64 in 0..U-1
    end: (Q,) int64 row of the target; the prefix is the rows offsets[user]..end, at least one
    target: (Q,) int32 item index   target_time: (Q,) int64 unix seconds or UNKNOWN_TIME
    """

    interactions: Interactions
    user: np.ndarray
    end: np.ndarray
    target: np.ndarray
    target_time: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def sequence(self, question: int) -> Sequence:
        """The prefix, asked at the moment of the target."""
        return self.interactions.sequence(
            int(self.user[question]), int(self.end[question]), request_time=int(self.target_time[question])
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Training rows and two sets of questions, over one vocabulary.

    train: same users and items, fewer rows; a user with fewer than two rows gives no target, and an
    item may have no row at all
    """

    name: str
    train: Interactions
    validation: EvaluationSet
    test: EvaluationSet


def leave_one_out(interactions: Interactions) -> Split:
    """Each user's last row is the test target, the one before it the validation target, the rest trains.

    Users with fewer than three rows are trained on only. Raises DataError when no user has three.
    """
    offsets = interactions.offsets
    count = np.diff(offsets)
    user = np.flatnonzero(count >= 3)
    if not len(user):
        raise DataError(
            "leave-one-out needs a user with at least 3 interactions, and there is none: add data"
        )
    last = offsets[user + 1] - 1
    in_train = np.where(count >= 3, count - 2, count)
    return Split(
        name="leave_one_out",
        train=_shortened(interactions, in_train, rule="leave-one-out: training part"),
        validation=_evaluation_set(interactions, user, last - 1),
        test=_evaluation_set(interactions, user, last),
    )


def global_time(interactions: Interactions, validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """Cut all users at the same two moments, so that nothing trained on is younger than what is asked.

    The cuts are quantiles of all times: `test_share` of the rows lie at or after the second,
    `validation_share` between the two (more when many rows share the moment of the cut). In each
    period a user's first row is the target and all that user's earlier rows the prefix; a user without
    earlier rows is not asked. Rows before the first cut train.
    Raises DataError without times, for shares that leave nothing, or when a part comes out empty.
    """
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        raise DataError(
            "validation_share and test_share must be above 0 and below 1 together, "
            f"got {validation_share} and {test_share}"
        )
    if not interactions.has_times:
        raise DataError("a global-time split needs times, and this log has none: use leave-one-out")
    quantiles = [1 - validation_share - test_share, 1 - test_share]
    validation_start, test_start = np.quantile(interactions.timestamp, quantiles, method="higher")
    before_validation = _rows_before(interactions, validation_start)
    before_test = _rows_before(interactions, test_start)
    count = np.diff(interactions.offsets)
    split = Split(
        name="global_time",
        train=_shortened(
            interactions, before_validation, rule=f"global time: before unix second {validation_start}"
        ),
        validation=_first_rows(interactions, before_validation, before_test),
        test=_first_rows(interactions, before_test, count),
    )
    for part, size in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        if not len(size):
            raise DataError(f"the global-time split leaves no {part} part: change the shares or add data")
    return split


def _rows_before(interactions: Interactions, moment: int) -> np.ndarray:
    """How many rows of each user are older than `moment`.   -> (U,) int64"""
    running = np.concatenate([[0], np.cumsum(interactions.timestamp < moment)])  # (R + 1,)
    return running[interactions.offsets[1:]] - running[interactions.offsets[:-1]]


def _first_rows(interactions: Interactions, start: np.ndarray, stop: np.ndarray) -> EvaluationSet:
    """Ask for row `start` of each user who has one before `stop` and a row before it.   start, stop: (U,)"""
    user = np.flatnonzero((start >= 1) & (start < stop))
    return _evaluation_set(interactions, user, interactions.offsets[user] + start[user])


def _evaluation_set(interactions: Interactions, user: np.ndarray, end: np.ndarray) -> EvaluationSet:
    return EvaluationSet(
        interactions=interactions,
        user=user.astype(np.int64),
        end=end.astype(np.int64),
        target=interactions.item_index[end],
        target_time=interactions.timestamp[end],
    )


def _shortened(interactions: Interactions, count: np.ndarray, *, rule: str) -> Interactions:
    """The first `count` rows of each user, under the same vocabulary.   count: (U,)"""
    dropped = np.diff(interactions.offsets) - count
    alternating = np.stack([count, dropped], axis=1).ravel()  # (2 U,) rows kept, rows dropped, user by user
    kept = np.repeat(np.tile([True, False], len(count)), alternating)  # (R,)
    item_index = interactions.item_index[kept]
    left = RuleCount(
        rule=rule,
        users=int(np.count_nonzero(count)),
        items=len(np.unique(item_index)),
        interactions=len(item_index),
    )
    return Interactions.create(
        user_ids=interactions.user_ids,
        item_ids=interactions.item_ids,
        offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        item_index=item_index,
        timestamp=interactions.timestamp[kept],
        report=(*interactions.report, left),
    )
