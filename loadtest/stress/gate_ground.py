"""What every bad build starts from: a bundle in service, a good build of tonight, and one of another kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.stress.gate_nights import Night, Parts, night_of, train_night, until
from model.data.synthetic import DriftLog


@dataclass(frozen=True, eq=False)
class Ground:
    """What every scenario starts from.

    log: all of the world's events up to `now`   last: the parts of the bundle in service
    night, good: tonight's log and the parts of a good build of it   other: those of an independent one
    """

    log: DriftLog
    now: int
    last_now: int
    last: Parts
    night: Night
    good: Parts
    other: Parts


@dataclass(frozen=True, eq=False)
class BadBuild:
    """A finished bundle and what the gates are asked with.

    against_last: false for a first night, which has no bundle to compare with
    """

    path: Path
    night: Night
    against_last: bool = True


Scenario = Callable[[Ground, Path], BadBuild]


def lay_ground(log: DriftLog, *, last_now: int, now: int) -> Ground:
    """Train last night's bundle, tonight's good one, and another from another seed."""
    last = train_night(night_of(until(log, last_now), last_now), None, seed=0, epochs=4)
    log = until(log, now)
    night = night_of(log, now)
    good = train_night(night, last, seed=1, epochs=1, learning_rate=2e-3)
    other = train_night(night, None, seed=2, epochs=4)
    return Ground(log, now, last_now, last, night, good, other)
