"""Logs gone wrong, as logs do: parts missing, parts twice, clocks, bots, ids. Each from a good one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loadtest.stress.gate_ground import Ground
from loadtest.stress.gate_nights import DAY_S, rows_of, until
from model.data.synthetic import DriftLog


def empty_day(log: DriftLog, ground: Ground) -> DriftLog:
    return until(log, ground.last_now)


def one_user_log(log: DriftLog, ground: Ground) -> DriftLog:
    busiest = np.bincount(log.user).argmax()
    return rows_of(log, log.user == busiest)


def one_user_day(log: DriftLog, ground: Ground) -> DriftLog:
    """The whole history, and a newest day in which only one user was logged."""
    newest = log.timestamp > ground.last_now
    user = np.bincount(log.user[newest]).argmax()
    return rows_of(log, ~newest | (log.user == user))


def most_shards_missing(log: DriftLog, ground: Ground) -> DriftLog:
    return rows_of(log, log.user % 8 == 0)


def half_of_the_catalogue_missing(log: DriftLog, ground: Ground) -> DriftLog:
    return rows_of(log, log.item % 2 == 0)


def clock_a_year_ahead(log: DriftLog, ground: Ground) -> DriftLog:
    newest = log.timestamp > ground.last_now
    return replace(log, timestamp=np.where(newest, log.timestamp + 365 * DAY_S, log.timestamp))


def times_all_zero(log: DriftLog, ground: Ground) -> DriftLog:
    return replace(log, timestamp=np.zeros_like(log.timestamp))


def times_all_equal(log: DriftLog, ground: Ground) -> DriftLog:
    return replace(log, timestamp=np.full_like(log.timestamp, ground.now - 60))


def older_log(log: DriftLog, ground: Ground) -> DriftLog:
    """Restored from a backup taken a little before the last build."""
    return until(log, ground.last_now - 6 * 3600)


def log_twice(log: DriftLog, ground: Ground) -> DriftLog:
    """Every file read four times, each time a second later, so that no row is an exact repeat."""
    rows = np.repeat(np.arange(len(log.user)), 4)
    late = np.tile(np.arange(4), len(log.user))
    four = rows_of(log, rows)
    return replace(four, timestamp=np.minimum(four.timestamp + late, ground.now))


def bot_traffic(log: DriftLog, ground: Ground) -> DriftLog:
    """Nine of ten events of the newest day are on one item, by many users."""
    newest = np.flatnonzero(log.timestamp > ground.last_now)
    bots = np.repeat(newest, 9)
    item = np.full(len(bots), log.item[newest[0]], dtype=log.item.dtype)
    time = np.minimum(log.timestamp[bots] + np.tile(np.arange(1, 10), len(newest)), ground.now)
    order = np.argsort(np.concatenate([log.timestamp, time]), kind="stable")
    return rows_of(
        replace(
            log,
            user=np.concatenate([log.user, log.user[bots]]),
            item=np.concatenate([log.item, item]),
            timestamp=np.concatenate([log.timestamp, time]),
            position=np.concatenate([log.position, log.position[bots]]),
        ),
        order,
    )


def one_crawler(log: DriftLog, ground: Ground) -> DriftLog:
    """One user walks through the catalogue, over and over, all of the newest day."""
    newest = np.flatnonzero(log.timestamp > ground.last_now)
    rows = np.concatenate([np.arange(len(log.user)), np.repeat(newest, 2)])
    crawled = rows_of(log, rows)
    user, item, time = crawled.user.copy(), crawled.item.copy(), crawled.timestamp.copy()
    added = slice(len(log.user), None)
    user[added] = log.user[newest[0]]
    item[added] = np.arange(len(newest) * 2) % len(log.item_ids)
    time[added] = np.minimum(time[added] + np.tile([1, 2], len(newest)), ground.now)
    crawled = replace(crawled, user=user, item=item, timestamp=time)
    return rows_of(crawled, np.argsort(time, kind="stable"))


def users_of_40_logins(log: DriftLog, ground: Ground) -> DriftLog:
    """The newest day's events all came under forty shared logins."""
    user = log.user.copy()
    newest = log.timestamp > ground.last_now
    user[newest] %= 40
    return replace(log, user=user)


def only_first_event_of_a_day(log: DriftLog, ground: Ground) -> DriftLog:
    """A cache in front of the logger lets one event of each user through."""
    newest = np.flatnonzero(log.timestamp > ground.last_now)
    _, first = np.unique(log.user[newest], return_index=True)
    kept = log.timestamp <= ground.last_now
    kept[newest[first]] = True
    return rows_of(log, kept)


def user_ids_cut_short(log: DriftLog, ground: Ground) -> DriftLog:
    """A column too narrow: three users share an id."""
    return replace(log, user=log.user // 3)


def import_in_one_second(log: DriftLog, ground: Ground) -> DriftLog:
    """Old events, re-imported, carry the moment of the import's start."""
    old = log.timestamp < np.quantile(log.timestamp, 0.5)
    time = np.where(old, log.timestamp[old].max(), log.timestamp)
    return replace(log, timestamp=time)


def quiet_bot(log: DriftLog, ground: Ground) -> DriftLog:
    """Half as many events again as the day has, on one item."""
    newest = log.timestamp > ground.last_now
    item = log.item.copy()
    hit = np.flatnonzero(newest)[::2]
    item[hit] = log.item[hit[0]]
    return replace(log, item=item)


def ids_with_tracking_parameter(log: DriftLog, ground: Ground) -> DriftLog:
    """The newest day's item ids carry something that is new in every event."""
    newest = np.flatnonzero(log.timestamp > ground.last_now)
    item = log.item.copy()
    item[newest] = len(log.item_ids) + np.arange(len(newest))
    made_up = [f"{log.item_ids[log.item[row]]}?visit={row}" for row in newest.tolist()]
    return replace(log, item=item, item_ids=[*log.item_ids, *made_up])


def ids_renamed(log: DriftLog, ground: Ground) -> DriftLog:
    """A seventh of the items got other ids, in all of the log: leading zeros were lost on the way."""
    ids = log.item_ids
    return replace(
        log, item_ids=[name.replace("-0", "-") if n % 7 == 0 else name for n, name in enumerate(ids)]
    )


def reader_stopped_early(log: DriftLog, ground: Ground) -> DriftLog:
    """Two fifths of the users, those of the first files."""
    return rows_of(log, log.user < len(log.user_ids) * 0.4)
