"""The rules, against the same rules written row by row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batch import UNKNOWN_TIME
from model.data.interactions import DataError, Interactions, RuleCount, Rules
from model.data.rules import Rows, apply_rules, render_report

Event = tuple[int, int, int]  # user, item, milliseconds

events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 6), st.sampled_from([0, 500, 1000, 1500, 7000])),
    min_size=1,
    max_size=60,
)
rules = st.builds(
    Rules,
    min_interactions=st.integers(1, 6),
    max_per_user=st.none() | st.integers(1, 8),
    duplicates=st.sampled_from(["keep", "first", "last"]),
)


def row_by_row(log: list[Event], rules: Rules, *, has_times: bool) -> list[Event]:
    """The definition of the rules, as plainly as it can be written."""
    kept: list[Event] = []
    for user in dict.fromkeys(user for user, _, _ in log):
        mine = [event for event in log if event[0] == user]
        if has_times:
            mine = list(dict.fromkeys(sorted(mine, key=lambda event: event[2])))
        if rules.duplicates == "last":
            mine = mine[::-1]
        if rules.duplicates != "keep":
            mine = [event for n, event in enumerate(mine) if event[1] not in [e[1] for e in mine[:n]]]
        if rules.duplicates == "last":
            mine = mine[::-1]
        if len(mine) >= rules.min_interactions:
            kept += mine if rules.max_per_user is None else mine[-rules.max_per_user :]
    return kept


def encoded(log: list[Event], rules: Rules, *, has_times: bool = True) -> Interactions:
    """The log through `apply_rules`, ids in order of first appearance."""
    users = list(dict.fromkeys(user for user, _, _ in log))
    items = list(dict.fromkeys(item for _, item, _ in log))
    rows = Rows(
        user=np.array([users.index(user) for user, _, _ in log], dtype=np.int32),
        item=np.array([items.index(item) for _, item, _ in log], dtype=np.int32),
        time_ms=np.array([time for _, _, time in log], dtype=np.int64) if has_times else None,
    )
    return apply_rules(
        rows, user_ids=[f"u{user}" for user in users], item_ids=[f"i{item}" for item in items], rules=rules
    )


def decoded(log: Interactions) -> list[tuple[str, str, int]]:
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets))
    return [
        (log.user_ids[u], log.item_ids[i - 1], int(t))
        for u, i, t in zip(user, log.item_index, log.timestamp, strict=True)
    ]


@settings(max_examples=400, deadline=None)
@given(log=events, rules=rules, has_times=st.booleans())
def test_the_rules_keep_what_they_say_in_the_order_they_say(log, rules, has_times):
    expected = row_by_row(log, rules, has_times=has_times)
    if not expected:
        with pytest.raises(DataError, match="no interactions are left after the rule 'users with at least"):
            encoded(log, rules, has_times=has_times)
        return
    kept = encoded(log, rules, has_times=has_times)
    seconds = [time // 1000 if has_times else UNKNOWN_TIME for _, _, time in expected]
    assert decoded(kept) == [
        (f"u{user}", f"i{item}", time) for (user, item, _), time in zip(expected, seconds, strict=True)
    ]


@settings(max_examples=200, deadline=None)
@given(log=events, rules=rules)
def test_ids_that_nothing_refers_to_are_gone_and_the_rest_keep_their_order(log, rules):
    try:
        kept = encoded(log, rules)
    except DataError:
        return
    assert set(kept.item_index.tolist()) == set(range(1, kept.num_items + 1))
    assert np.diff(kept.offsets).min() >= 1
    for ids, position in ((kept.user_ids, 0), (kept.item_ids, 1)):
        order = list(dict.fromkeys(f"{'ui'[position]}{event[position]}" for event in log))
        assert ids == [name for name in order if name in ids]


@settings(max_examples=200, deadline=None)
@given(log=events, rules=rules)
def test_the_report_counts_what_each_rule_left(log, rules):
    try:
        kept = encoded(log, rules)
    except DataError:
        return
    first, *_, last = kept.report
    assert (first.rule, first.users, first.items, first.interactions) == (
        "read",
        len({user for user, _, _ in log}),
        len({item for _, item, _ in log}),
        len(log),
    )
    assert (last.users, last.items, last.interactions) == (kept.num_users, kept.num_items, len(kept))
    counts = [count.interactions for count in kept.report]
    assert counts == sorted(counts, reverse=True)


def test_each_rule_has_its_line_and_what_it_took():
    repeats = [(0, 1, 0)] * 2
    short = [(1, item, 0) for item in range(2)]
    long = [(2, item % 4, item * 1000) for item in range(9)]
    log = encoded(
        repeats + short + long, Rules(min_interactions=3, max_per_user=3, duplicates="last"), has_times=True
    )
    assert [(c.rule, c.users, c.items, c.interactions) for c in log.report] == [
        ("read", 3, 4, 13),
        ("exact repeats dropped", 3, 4, 12),
        ("duplicates: last of each user and item", 3, 4, 7),
        ("users with at least 3 interactions", 1, 4, 4),
        ("last 3 of each user", 1, 3, 3),
    ]


def test_an_exact_repeat_is_found_behind_other_rows_of_the_same_moment():
    log = encoded([(0, 1, 5), (0, 2, 5), (0, 1, 5), (1, 1, 5), (0, 1, 6)], Rules(min_interactions=1))
    assert Counter(user for user, _, _ in decoded(log)) == {"u0": 3, "u1": 1}
    assert [item for _, item, _ in decoded(log)] == ["i1", "i2", "i1", "i1"]


@pytest.mark.parametrize("duplicates", ["keep", "first", "last"])
def test_a_log_of_many_blocks_gives_what_one_block_gives(monkeypatch, duplicates):
    generator = np.random.default_rng(0)
    log = [tuple(event) for event in generator.integers(0, [40, 9, 5], (3000, 3)).tolist()]
    chosen = Rules(min_interactions=2, max_per_user=6, duplicates=duplicates)
    whole = encoded(log, chosen)
    monkeypatch.setattr("model.data.rules._BLOCK_ROWS", 100)
    assert encoded(log, chosen).fingerprint == whole.fingerprint


def test_the_report_is_a_table_with_its_notes_below():
    text = render_report(
        (RuleCount("read", 6040, 3706, 1000209, "3 files"), RuleCount("a rule", 5000, 3700, 900000))
    )
    assert text == (
        "rule    users  items  interactions    change\n"
        "read    6,040  3,706     1,000,209\n"
        "a rule  5,000  3,700       900,000  -100,209\n"
        "read: 3 files"
    )
