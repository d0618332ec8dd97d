"""From encoded rows to Interactions: sort, apply the rules in order, count after each; the report as text.

Everything is vectorised and works column by column, so that at most one column exists twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.batch import UNKNOWN_TIME
from model.data.interactions import DataError, Interactions, RuleCount, Rules

_BLOCK_ROWS = 1 << 20


@dataclass
class Rows:
    """A log's rows in file order; `apply_rules` takes them over and empties them.

    user: (R,) int32 index into the user ids   item: (R,) int32 index into the item ids
    time_ms: (R,) int64 unix milliseconds, or None for a log without times
    """

    user: np.ndarray
    item: np.ndarray
    time_ms: np.ndarray | None

    def __len__(self) -> int:
        return len(self.user)

    def select(self, chosen: np.ndarray) -> None:
        """Keep the chosen rows, in place.   chosen: (R,) bool, or row numbers in the order wanted"""
        self.user = self.user[chosen]
        self.item = self.item[chosen]
        if self.time_ms is not None:
            self.time_ms = self.time_ms[chosen]


def apply_rules(
    rows: Rows, *, user_ids: list[str], item_ids: list[str], rules: Rules, note: str = ""
) -> Interactions:
    """Sort the rows by user and time, apply `rules`, and drop the ids that nothing refers to any more.

    user_ids, item_ids: the ids in order of first appearance, which stays their order
    note: what the report's first line should say about the reading
    Raises DataError when a rule leaves nothing, naming the rule.
    """
    report = [_count("read", rows, note)]
    _sort(rows)
    for rule, kept in (
        ("exact repeats dropped", _not_repeated),
        (f"duplicates: {rules.duplicates} of each user and item", _deduplicated),
        (f"users with at least {rules.min_interactions} interactions", _active_users),
        (f"last {rules.max_per_user} of each user", _most_recent),
    ):
        mask = kept(rows, rules)
        if mask is None:
            continue
        if not mask.all():
            rows.select(mask)
        report.append(_count(rule, rows))
        if not len(rows):
            raise DataError(
                f"no interactions are left after the rule {rule!r} (before it: {report[-2].users:,} users, "
                f"{report[-2].interactions:,} interactions): relax the rule or give more data"
            )
    return _compacted(rows, user_ids=user_ids, item_ids=item_ids, report=tuple(report))


def render_report(report: Sequence[RuleCount]) -> str:
    """A table with a line a rule: what is left after it, and how many interactions it took.

    The counts stand in columns; notes follow below. No line ends in blanks, none is added at the end.
    """
    rows = [("rule", "users", "items", "interactions", "change")]
    previous: RuleCount | None = None
    for count in report:
        change = f"{count.interactions - previous.interactions:+,}" if previous else ""
        rows.append((count.rule, f"{count.users:,}", f"{count.items:,}", f"{count.interactions:,}", change))
        previous = count
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for name, *numbers in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    lines += [f"{count.rule}: {count.note}" for count in report if count.note]
    return "\n".join(lines)


def _count(rule: str, rows: Rows, note: str = "") -> RuleCount:
    return RuleCount(
        rule=rule, users=_distinct(rows.user), items=_distinct(rows.item), interactions=len(rows), note=note
    )


def _distinct(codes: np.ndarray) -> int:
    return int(np.count_nonzero(_present(codes))) if len(codes) else 0


def _present(codes: np.ndarray) -> np.ndarray:
    """-> (largest code + 1,) bool, which codes occur"""
    present = np.zeros(int(codes.max()) + 1, dtype=bool)
    present[codes] = True
    return present


def _sort(rows: Rows) -> None:
    """By user, then time; stable, so that ties keep the order of the file."""
    same_user = rows.user[1:] == rows.user[:-1]
    in_order = rows.user[1:] > rows.user[:-1]
    if rows.time_ms is None:
        in_order |= same_user
        keys: tuple[np.ndarray, ...] = (rows.user,)
    else:
        in_order |= same_user & (rows.time_ms[1:] >= rows.time_ms[:-1])
        keys = (rows.time_ms, rows.user)
    if not in_order.all():
        rows.select(np.lexsort(keys))


def _not_repeated(rows: Rows, rules: Rules) -> np.ndarray | None:
    """False at rows equal to an earlier one in user, time and item."""
    if rows.time_ms is None:
        return None
    kept = np.ones(len(rows), dtype=bool)
    for block in _user_blocks(rows.user):
        user, item, time_ms = rows.user[block], rows.item[block], rows.time_ms[block]
        tied_to_previous = np.zeros(len(user) + 1, dtype=bool)
        tied_to_previous[1:-1] = (user[1:] == user[:-1]) & (time_ms[1:] == time_ms[:-1])
        tied = np.flatnonzero(tied_to_previous[:-1] | tied_to_previous[1:])
        moment = np.cumsum(~tied_to_previous[tied])  # numbers the groups of rows that share user and time
        kept[block][tied[~_first_of_each(moment, item[tied])]] = False
    return kept


def _deduplicated(rows: Rows, rules: Rules) -> np.ndarray | None:
    """True at the first (or last) row of each user and item."""
    if rules.duplicates == "keep":
        return None
    kept = np.empty(len(rows), dtype=bool)
    direction = slice(None, None, 1 if rules.duplicates == "first" else -1)
    for block in _user_blocks(rows.user):
        first = _first_of_each(rows.user[block][direction], rows.item[block][direction])
        kept[block] = first[direction]
    return kept


def _active_users(rows: Rows, rules: Rules) -> np.ndarray | None:
    return (np.bincount(rows.user) >= rules.min_interactions)[rows.user]


def _most_recent(rows: Rows, rules: Rules) -> np.ndarray | None:
    if rules.max_per_user is None:
        return None
    start = np.cumsum(np.bincount(rows.user)) - rules.max_per_user  # (U,) each user's first row to keep
    kept = np.empty(len(rows), dtype=bool)
    for block in _user_blocks(rows.user):
        kept[block] = np.arange(block.start, block.stop) >= start[rows.user[block]]
    return kept


def _user_blocks(user: np.ndarray) -> Iterator[slice]:
    """Slices of about a million rows that part no user's rows, to bound the memory of what is computed.

    user: (R,) ascending
    """
    start = 0
    while start < len(user):
        last = min(start + _BLOCK_ROWS, len(user)) - 1
        stop = int(np.searchsorted(user, user[last], side="right"))
        yield slice(start, stop)
        start = stop


def _first_of_each(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    """True where a pair occurs for the first time.   major, minor: (R,) -> (R,) bool"""
    order = np.lexsort((minor, major))  # stable: equal pairs stay in row order
    first = np.ones(len(order), dtype=bool)
    repeats = (major[order[1:]] == major[order[:-1]]) & (minor[order[1:]] == minor[order[:-1]])
    first[order[1:][repeats]] = False
    return first


def _compacted(
    rows: Rows, *, user_ids: list[str], item_ids: list[str], report: tuple[RuleCount, ...]
) -> Interactions:
    count = np.bincount(rows.user)
    present_users = np.flatnonzero(count)
    present_items = _present(rows.item)
    item_index_of = np.cumsum(present_items, dtype=np.int32)  # code -> 1..M, right where the item is present
    offsets = np.zeros(len(present_users) + 1, dtype=np.int64)
    np.cumsum(count[present_users], out=offsets[1:])
    rows.user = rows.user[:0]
    if rows.time_ms is None:
        timestamp = np.full(len(rows.item), UNKNOWN_TIME, dtype=np.int64)
    else:
        timestamp = rows.time_ms
        timestamp //= 1000
    return Interactions.create(
        user_ids=[user_ids[code] for code in present_users],
        item_ids=[item_ids[code] for code in np.flatnonzero(present_items)],
        offsets=offsets,
        item_index=item_index_of[rows.item],
        timestamp=timestamp,
        report=report,
    )
