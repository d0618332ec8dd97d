"""A log as a nightly build sees it: its latest days, numbered as yesterday, the newest day held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from model.data.dataset import EvaluationSet, Split
from model.data.interactions import DataError, Interactions, RuleCount

DAY_SECONDS = 86_400


def within(log: Interactions, *, until: int | None = None, days: float | None = None) -> Interactions:
    """The rows before unix second `until`, and of these the latest `days`; ids that have none left are gone.

    Raises DataError for a log without times, or when nothing is left.
    """
    if not log.has_times:
        raise DataError("a nightly build needs times, and this log has none: name its --timestamp-column")
    kept = np.ones(len(log), dtype=bool) if until is None else log.timestamp < until
    if days is not None and kept.any():
        kept &= log.timestamp > log.timestamp[kept].max() - days * DAY_SECONDS
    if not kept.any():
        raise DataError(f"no interaction lies before {until} (--until): give a later time or newer logs")
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets))[kept]
    present_users, count = np.unique(user, return_counts=True)
    present_items, item = np.unique(log.item_index[kept], return_inverse=True)
    left = RuleCount("the nightly window", len(present_users), len(present_items), len(user))
    return Interactions.create(
        user_ids=[log.user_ids[number] for number in present_users],
        item_ids=[log.item_ids[number - 1] for number in present_items],
        offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        item_index=(item + 1).astype(np.int32),
        timestamp=log.timestamp[kept],
        report=(*log.report, left),
    )


def with_vocabulary(
    log: Interactions, known: Sequence[str], index_of: Mapping[str, int], *, added: Sequence[str] = ()
) -> Interactions:
    """The same rows, numbered as before: items of `known` keep their index, the log's new ones follow.

    index_of: item id -> item index of `known`   added: more new items, which no row mentions
    """
    item_ids = list(known)
    mentioned = set(log.item_ids)
    new = [item_id for item_id in log.item_ids if item_id not in index_of]
    new += [
        item_id for item_id in dict.fromkeys(added) if item_id not in index_of and item_id not in mentioned
    ]
    new_index = {item_id: len(item_ids) + number for number, item_id in enumerate(new, start=1)}
    index = [index_of[item_id] if item_id in index_of else new_index[item_id] for item_id in log.item_ids]
    return Interactions.create(
        user_ids=log.user_ids,
        item_ids=item_ids + new,
        offsets=log.offsets,
        item_index=np.array(index, dtype=np.int32)[log.item_index - 1],
        timestamp=log.timestamp,
        report=log.report,
    )


def newest_day_split(
    log: Interactions, *, num_known: int = 0, validation_share: float = 0.1, day_seconds: int = DAY_SECONDS
) -> Split:
    """Train before the newest day; validate on the last training row of some users; test on the newest day.

    num_known: item indices up to it were known before this log. The newest day is the 24 hours up to the
    latest row. A user is asked for the first row of it, knowing all rows before; not for an item that
    nobody consumed before that day and that was not known: a model that answers it has seen the answer.
    `validation_share` of the users (evenly spread, those with three training rows) give their last
    training row to choose the best epoch by. The test part may be empty: that is for a gate to judge.
    Raises DataError when there is nothing to train on or to validate with.
    """
    cut = int(log.timestamp.max()) - day_seconds + 1
    older = np.concatenate([[0], np.cumsum(log.timestamp < cut)])  # (R + 1,)
    count = older[log.offsets[1:]] - older[log.offsets[:-1]]  # (U,) rows before the newest day
    candidates = np.flatnonzero(count >= 3)
    if not len(candidates):
        raise DataError(
            "no user has 3 interactions before the newest day: give more days of logs, or a longer --history"
        )
    wanted = max(1, round(validation_share * len(candidates)))
    validated = candidates[np.unique(np.linspace(0, len(candidates) - 1, wanted).astype(int))]
    in_train = count.copy()
    in_train[validated] -= 1
    asked = np.flatnonzero((count >= 1) & (count < np.diff(log.offsets)))
    known = np.zeros(log.num_items + 1, dtype=bool)
    known[: num_known + 1] = True
    known[log.item_index[log.timestamp < cut]] = True
    asked = asked[known[log.item_index[log.offsets[asked] + count[asked]]]]
    return Split(
        name="newest_day",
        train=_first_rows(log, in_train),
        validation=_questions(log, validated, in_train[validated]),
        test=_questions(log, asked, count[asked]),
    )


def _first_rows(log: Interactions, count: np.ndarray) -> Interactions:
    """The first `count` rows of each user, same users and items.   count: (U,)"""
    place = np.arange(len(log)) - np.repeat(log.offsets[:-1], np.diff(log.offsets))
    kept = place < np.repeat(count, np.diff(log.offsets))
    left = RuleCount(
        rule="before the newest day, less the validation targets",
        users=int(np.count_nonzero(count)),
        items=len(np.unique(log.item_index[kept])),
        interactions=int(kept.sum()),
    )
    return Interactions.create(
        user_ids=log.user_ids,
        item_ids=log.item_ids,
        offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        item_index=log.item_index[kept],
        timestamp=log.timestamp[kept],
        report=(*log.report, left),
    )


def _questions(log: Interactions, user: np.ndarray, place: np.ndarray) -> EvaluationSet:
    """Ask each user for its row `place`.   user, place: (Q,)"""
    end = log.offsets[user] + place
    return EvaluationSet(
        interactions=log,
        user=user.astype(np.int64),
        end=end.astype(np.int64),
        target=log.item_index[end],
        target_time=log.timestamp[end],
    )
