"""Which items are served tonight."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.fold_in import Pending
from index_builder.item_rows import NEVER_SEEN, ItemRows
from index_builder.retirement import RetirementRule, choose_served
from model.data.interactions import DataError, Interactions

DAY = 86_400
TODAY = 20_000


def log_of(seen: dict[str, list[int]]) -> Interactions:
    """Items consumed so many days ago, in the order of the vocabulary."""
    rows = [(TODAY - ago, index) for index, days in enumerate(seen.values(), 1) for ago in days]
    rows.sort()
    return Interactions.create(
        user_ids=["u"],
        item_ids=list(seen),
        offsets=np.array([0, len(rows)]),
        item_index=np.array([index for _, index in rows], dtype=np.int32),
        timestamp=np.array([day * DAY for day, _ in rows]),
    )


def served(log: Interactions, known: ItemRows | None = None, num_known: int = 0, **given) -> list[str]:
    given = {"pending": Pending(), "rule": RetirementRule()} | given
    return list(choose_served(log, known, num_known, **given).ids(log.item_ids))


def test_items_are_served_as_long_as_the_rule_says():
    log = log_of({"a": [5], "b": [6, 7], "c": [0]})
    assert served(log, rule=RetirementRule(after_days=5)) == ["a", "c"]
    assert served(log, rule=RetirementRule(after_days=6)) == ["a", "b", "c"]
    assert served(log, rule=RetirementRule(below=2)) == ["b"]


def test_what_the_log_no_longer_shows_is_known_from_the_last_bundle():
    log = log_of({"a": [], "b": [], "never": [], "c": [0]})
    known = ItemRows(last_seen_day=np.array([TODAY - 5, TODAY - 9, NEVER_SEEN], np.int32))
    assert served(log, known, 3, rule=RetirementRule(after_days=5)) == ["a", "c"]
    assert served(log, known, 3) == ["a", "b", "c"]
    rows = choose_served(log, known, 3, pending=Pending(), rule=RetirementRule())
    assert rows.last_seen_day.tolist() == [TODAY - 5, TODAY - 9, NEVER_SEEN, TODAY]


def test_what_a_bundle_without_that_record_serves_counts_as_seen_today():
    log = log_of({"a": [], "b": [], "c": [0]})
    assert served(log, ItemRows(), 2, rule=RetirementRule(after_days=1)) == ["a", "b", "c"]
    partly = ItemRows.of_served(np.array([True, False]))
    assert served(log, partly, 2, rule=RetirementRule(after_days=1)) == ["a", "c"]


def test_added_items_are_served_though_nobody_consumed_them():
    log = log_of({"a": [0, 0], "new": []})
    assert served(log) == ["a"]
    pending = Pending(similar={"new": {"a": 1.0}})
    assert served(log, pending=pending, rule=RetirementRule(below=2)) == ["a", "new"]


def test_deleted_items_stay_away_until_they_are_added_again_or_taken_back():
    log = log_of({"a": [0], "b": [3]})
    first = choose_served(log, None, 0, pending=Pending(deleted={"b": TODAY - 3}), rule=RetirementRule())
    assert list(first.ids(log.item_ids)) == ["a"]
    forgotten = Pending(forgotten_until=TODAY)
    assert served(log, first, 2, pending=forgotten) == ["a"]
    consumed_later = log_of({"a": [0], "b": [2]})
    assert served(consumed_later, first, 2, pending=forgotten) == ["a"]
    again = Pending(similar={"b": {"a": 1.0}}, forgotten_until=TODAY)
    assert served(log, first, 2, pending=again) == ["a", "b"]
    assert served(log, first, 2, pending=Pending(forgotten_until=TODAY - 30)) == ["a", "b"]  # gone too soon


def test_a_rule_that_leaves_nothing_or_makes_no_sense_is_refused():
    with pytest.raises(DataError, match="no item is left to serve"):
        served(log_of({"a": [0]}), rule=RetirementRule(below=2))
    for rule in ({"after_days": 0}, {"below": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            RetirementRule(**rule)
