"""What a bundle's manifest keeps of the log that it was trained on, for the next night to compare with.

The newest day is the 24 hours up to the night itself: what was logged late, or dated ahead, is missing from
it. Only where a log ends before that, its newest day is the 24 hours up to its newest interaction: how old it
is has a gate of its own.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from index_builder.gate_limits import GateLimits
from index_builder.quality import Check, skip
from model.data.dataset import EvaluationSet
from model.data.interactions import Interactions

DAY_S = 86_400
HOUR_S = 3_600
NO_TIMES = "the log has no times"
NO_SUMMARY = "the bundle's manifest has no section `data`: build it with t2diff-index nightly, or give --logs"


def summarise_log(log: Interactions, *, now: int | None = None) -> dict[str, Any]:
    """The manifest's section `data`.   now: unix seconds, the clock's when None

    newest, oldest: unix seconds, null for a log without times   users, items, interactions: of the whole log
    top_time_share: of the interactions that share the commonest second
    newest_day: users, items and interactions, top_item_share and top_user_share (of the interactions with
        the commonest item, by the busiest user); null for a log without times
    """
    summary: dict[str, Any] = {
        "users": int(np.count_nonzero(np.diff(log.offsets))),
        "items": len(np.unique(log.item_index)),
        "interactions": len(log),
        "newest": None,
        "oldest": None,
        "top_time_share": None,
        "newest_day": None,
    }
    if not log.has_times:
        return summary
    row = np.flatnonzero(_in_newest_day(log, log.timestamp, now))
    user = np.searchsorted(log.offsets, row, side="right") - 1  # (rows of the day,)
    return summary | {
        "newest": int(log.timestamp.max()),
        "oldest": int(log.timestamp.min()),
        "top_time_share": _top_share(log.timestamp),
        "newest_day": {
            "users": len(np.unique(user)),
            "items": len(np.unique(log.item_index[row])),
            "interactions": len(row),
            "top_item_share": _top_share(log.item_index[row]),
            "top_user_share": _top_share(user),
        },
    }


def of_newest_day(questions: EvaluationSet, *, now: int | None = None) -> EvaluationSet:
    """The questions whose target lies in the newest day of their log; all of them without times."""
    log = questions.interactions
    if not log.has_times:
        return questions
    chosen = _in_newest_day(log, questions.target_time, now)
    return EvaluationSet(
        interactions=log,
        user=questions.user[chosen],
        end=questions.end[chosen],
        target=questions.target[chosen],
        target_time=questions.target_time[chosen],
    )


def _in_newest_day(log: Interactions, times: np.ndarray, now: int | None) -> np.ndarray:
    """Which of `times` lie in the log's newest day.   times: (N,) unix seconds -> (N,) bool"""
    now = int(time.time()) if now is None else now
    newest = int(log.timestamp.max())
    end = now if newest > now - DAY_S else newest
    return (times > end - DAY_S) & (times <= end)


def check_log(
    data: dict[str, Any] | None, last: dict[str, Any] | None, limits: GateLimits, *, now: int
) -> list[Check]:
    """The log itself, and against the last bundle's.

    data, last: sections `data` of the two manifests, None where there is none   now: unix seconds
    """
    return [*_check_clock(data, last, limits, now), *_check_sizes(data, last, limits)]


def _check_clock(
    data: dict[str, Any] | None, last: dict[str, Any] | None, limits: GateLimits, now: int
) -> list[Check]:
    names = ("log_age_hours", "log_hours_after_last", "log_top_time_share")
    if data is None or data["newest"] is None:
        return [skip(name, NO_SUMMARY if data is None else NO_TIMES) for name in names]
    age = Check(
        names[0],
        (now - data["newest"]) / HOUR_S,
        at_least=-limits.max_ahead_hours,
        at_most=limits.max_age_hours,
        detail=f"the newest interaction is of unix second {data['newest']}, now is {now}",
        remedy="see that the newest logs have arrived and that their clock is right (max_age_hours, "
        "max_ahead_hours)",
    )
    still = Check(
        names[2],
        data["top_time_share"],
        at_most=limits.max_top_time_share,
        detail="interactions in one and the same second",
        remedy="see what writes the log's times (max_top_time_share)",
    )
    if last is None or last["newest"] is None:
        return [age, skip(names[1], "the last bundle says nothing of its log's times"), still]
    after = Check(
        names[1],
        (data["newest"] - last["newest"]) / HOUR_S,
        at_least=0.0 - limits.max_backwards_hours,
        detail="from the last bundle's newest interaction to this one's",
        remedy="an older log was read than last time: see --logs (max_backwards_hours)",
    )
    return [age, after, still]


def _check_sizes(data: dict[str, Any] | None, last: dict[str, Any] | None, limits: GateLimits) -> list[Check]:
    day, last_day = (data or {}).get("newest_day"), (last or {}).get("newest_day")
    missing = NO_SUMMARY if data is None else NO_TIMES
    checks = []
    for part, ours, theirs in (("log", data, last), ("newest_day", day, last_day)):
        for count in ("users", "interactions"):
            checks.append(_compare(part, count, ours, theirs, limits, missing))
    for share, limit, whose in (
        ("top_item_share", limits.max_top_item_share, "the commonest item"),
        ("top_user_share", limits.max_top_user_share, "the busiest user"),
    ):
        name = f"newest_day_{share}"
        if day is None:
            checks.append(skip(name, missing))
            continue
        detail = f"of {day['interactions']:,} interactions, those of {whose}"
        remedy = f"look for bots in the log and leave them out (max_{share})"
        checks.append(Check(name, day[share], at_most=limit, detail=detail, remedy=remedy))
    return checks


def _compare(
    part: str,
    count: str,
    ours: dict[str, Any] | None,
    theirs: dict[str, Any] | None,
    limits: GateLimits,
    missing: str,
) -> Check:
    """One count of the log or of its newest day over the last night's; `missing` says why it cannot be."""
    name = f"{part}_{count}_ratio"
    if ours is None:
        return skip(name, missing)
    if theirs is None or not theirs[count]:
        return skip(name, "the last bundle says nothing of its log to compare with")
    limit = part.removeprefix("newest_")
    return Check(
        name,
        ours[count] / theirs[count],
        at_least=getattr(limits, f"min_{limit}_ratio"),
        at_most=getattr(limits, f"max_{limit}_ratio"),
        detail=f"{ours[count]:,} {count}, {theirs[count]:,} last time",
        remedy=f"see whether part of the log is missing or came twice (min_{limit}_ratio, max_{limit}_ratio)",
    )


def _top_share(values: np.ndarray) -> float:
    """The share of the commonest value; 0 where there is none."""
    return float(np.unique(values, return_counts=True)[1].max() / len(values)) if len(values) else 0.0
