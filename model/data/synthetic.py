"""A made-up log with planted drift: what a user wants next follows from where that user is heading.

Items are points on a sphere. A user travels over it with momentum: each event moves the position by a
step along the heading, and the heading turns only a little. Within a session the steps are short and
seconds apart; between sessions, hours or days apart, the user travels on unseen. The item consumed
is one near the position, popular items a little sooner than others. So popularity knows little, the
last item alone gives the place but not the direction, and the last few items together give both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.data.event_log import write_event_log
from model.data.interactions import DataError, Interactions, Rules
from model.data.rules import Rows, apply_rules

_CELLS_AT_ONCE = 1 << 22
_MEAN_AGE_SECONDS = 7 * 86_400


@dataclass(frozen=True)
class DriftSettings:
    """How users move; angles in radians on the unit sphere.

    latent_dim: of the sphere's space   mean_sessions, mean_session_length: per user; both at least 1
    step: travelled between the events of a session   jump: between sessions
    turn: standard deviation of the heading's change at each step   scatter: of the item about the position
    popularity: how far an item's popularity can outweigh nearness (in cosine)
    """

    latent_dim: int = 4
    mean_sessions: float = 5.0
    mean_session_length: float = 5.0
    step: float = 0.4
    jump: float = 0.8
    turn: float = 0.12
    scatter: float = 0.1
    popularity: float = 0.08


@dataclass(frozen=True, eq=False)
class DriftLog:
    """The events in order of time, and the truth behind them.

    user_ids: U strings   item_ids: M strings
    user, item: (R,) int32 indices into the ids   timestamp: (R,) int64 unix seconds
    position: (R, L) float32 where the user stood at the event   item_vector: (M, L) float32
    """

    user_ids: list[str]
    item_ids: list[str]
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    position: np.ndarray
    item_vector: np.ndarray

    def interactions(self, rules: Rules = Rules()) -> Interactions:
        """The log as a reader would give it, without a file."""
        user_ids, user = _by_appearance(self.user_ids, self.user)
        item_ids, item = _by_appearance(self.item_ids, self.item)
        rows = Rows(user, item, self.timestamp * 1000)
        return apply_rules(
            rows, user_ids=user_ids, item_ids=item_ids, rules=rules, note="synthetic drift log"
        )

    def write_event_log(self, path: Path | str) -> None:
        """Write the events to `path`: see `model.data.event_log.write_event_log`."""
        write_event_log(
            Path(path),
            user_id=np.array(self.user_ids, dtype=object)[self.user],
            item_id=np.array(self.item_ids, dtype=object)[self.item],
            timestamp=self.timestamp,
        )


def generate_drift_log(
    *,
    num_users: int = 2_000,
    num_items: int = 1_000,
    seed: int = 0,
    now: int | None = None,
    settings: DriftSettings = DriftSettings(),
) -> DriftLog:
    """A log of about 25 events a user that ends shortly before `now`; a function of its arguments alone.

    now: unix seconds, the clock's when None   seed: equal seeds give equal users, items and time gaps
    Users have 1 event at least, so that the rules have something to drop.
    Raises DataError for fewer than 1 user or 2 items, or a `now` so early that times would be negative.
    """
    if num_users < 1 or num_items < 2:
        raise DataError(f"num_users must be at least 1 and num_items 2, got {num_users} and {num_items}")
    generator = np.random.default_rng(seed)
    item_vector = _unit(generator.standard_normal((num_items, settings.latent_dim)))  # (M, L)
    popularity = settings.popularity * generator.beta(1, 4, num_items)  # (M,), few items are popular
    length, starts_session = _sessions(generator, num_users, settings)
    travel = _travel(generator, length, starts_session, settings)
    user, step = np.nonzero(np.arange(starts_session.shape[1]) < length[:, None])  # (R,)
    item = _consume(generator, travel, item_vector, popularity, length, settings)
    timestamp = _times(generator, length, starts_session, int(time.time()) if now is None else now)
    if timestamp[user, step].min() < 0:
        raise DataError(f"now must be late enough for a log of several months before it, got {now}")
    order = np.argsort(timestamp[user, step], kind="stable")
    user, step = user[order], step[order]
    return DriftLog(
        user_ids=[f"user-{number:05d}" for number in range(num_users)],
        item_ids=[f"item-{number:05d}" for number in range(num_items)],
        user=user.astype(np.int32),
        item=item[user, step],
        timestamp=timestamp[user, step],
        position=travel[user, step].astype(np.float32),
        item_vector=item_vector.astype(np.float32),
    )


def _sessions(
    generator: np.random.Generator, num_users: int, settings: DriftSettings
) -> tuple[np.ndarray, np.ndarray]:
    """-> events of each user (U,), and whether an event opens a session (U, E); E is the longest length"""
    num_sessions = 1 + generator.poisson(settings.mean_sessions - 1, num_users)
    continues = 1 - 1 / settings.mean_session_length
    length = np.array([generator.geometric(1 - continues, n).sum() for n in num_sessions])
    opens = generator.random((num_users, int(length.max()))) >= continues
    opens[:, 0] = True
    return length, opens


def _travel(
    generator: np.random.Generator, length: np.ndarray, opens: np.ndarray, settings: DriftSettings
) -> np.ndarray:
    """Positions along great circles, with a heading that turns a little.   -> (U, E, L)"""
    shape = (len(length), settings.latent_dim)
    position = _unit(generator.standard_normal(shape))
    heading = _tangent(generator.standard_normal(shape), position)
    positions = np.empty((len(length), opens.shape[1], settings.latent_dim))
    for event in range(opens.shape[1]):
        angle = np.where(opens[:, event], settings.jump, settings.step)[:, None]
        position, heading = (
            np.cos(angle) * position + np.sin(angle) * heading,
            np.cos(angle) * heading - np.sin(angle) * position,
        )
        turned = heading + settings.turn * generator.standard_normal(shape)
        heading = _tangent(turned, position)
        positions[:, event] = position
    return positions


def _consume(
    generator: np.random.Generator,
    travel: np.ndarray,
    item_vector: np.ndarray,
    popularity: np.ndarray,
    length: np.ndarray,
    settings: DriftSettings,
) -> np.ndarray:
    """The item nearest to the position, popularity aside; never the one just consumed.   -> (U, E) int32"""
    num_users, num_events = travel.shape[:2]
    item = np.full((num_users, num_events), -1, dtype=np.int32)
    users_at_once = max(1, _CELLS_AT_ONCE // len(item_vector))
    for start in range(0, num_users, users_at_once):
        chunk = slice(start, min(start + users_at_once, num_users))
        for event in range(int(length[chunk].max())):
            wanted = travel[chunk, event]
            wanted = _unit(wanted + settings.scatter * generator.standard_normal(wanted.shape))
            score = wanted @ item_vector.T + popularity  # (chunk, M)
            if event:
                score[np.arange(len(score)), item[chunk, event - 1]] = -np.inf
            item[chunk, event] = score.argmax(axis=1)
    return item


def _times(generator: np.random.Generator, length: np.ndarray, opens: np.ndarray, now: int) -> np.ndarray:
    """Seconds or minutes within a session, hours to days between; all before now.   -> (U, E) int64"""
    within = 15 + generator.exponential(90, opens.shape)
    between = 6 * 3600 + generator.exponential(2 * 86_400, opens.shape)
    elapsed = np.cumsum(np.where(opens, between, within), axis=1)  # (U, E)
    last = elapsed[np.arange(len(length)), length - 1]
    ends = now - 60 - generator.exponential(_MEAN_AGE_SECONDS, len(length))  # (U,)
    return (elapsed - last[:, None] + ends[:, None]).astype(np.int64)


def _by_appearance(ids: list[str], codes: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The ids that occur, in order of first appearance, and the codes that mean them.   codes: (R,) int32"""
    present, first = np.unique(codes, return_index=True)
    order = present[np.argsort(first)]
    new_code = np.zeros(len(ids), dtype=np.int32)
    new_code[order] = np.arange(len(order), dtype=np.int32)
    return [ids[code] for code in order], new_code[codes]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _tangent(vectors: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The unit directions in which `vectors` point, as seen from `position`."""
    return _unit(vectors - (vectors * position).sum(axis=-1, keepdims=True) * position)
