"""Which bundles of a store are kept, and removing the others.

A bundle is kept when any of this holds: it is the current one, or the one that a rollback would go to; it
is among the N latest built or the N latest published; it is younger than a given age; it was named. The
pointer forgets a bundle before the bundle goes, and it vanishes whole: a kill at any moment leaves bundles
that are complete and listed, and leftovers that are neither.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from index_builder.publish import Store

LEFTOVER_AGE = timedelta(days=1)
_AGE = re.compile(r"(\d{1,6})([dhm])", re.ASCII)
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@dataclass(frozen=True)
class Retention:
    """As of `prune`. Raises ValueError for a number that keeps nothing."""

    keep: int
    younger_than: timedelta = timedelta(days=14)
    protected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be.

    busy: not removed because somebody loads or published them at this moment
    leftovers: of builds, uploads and removals that were killed
    """

    removed: list[str]
    kept: list[str]
    busy: list[str]
    leftovers: list[str]


def prune(
    store: Store,
    *,
    keep: int,
    younger_than: timedelta,
    protected: Collection[str] = (),
    dry_run: bool = False,
    now: datetime | None = None,
) -> Pruned:
    """Remove the bundles of a store that nothing keeps, and leftovers older than a day.

    keep: N   younger_than: the age up to which all are kept   protected: ids to keep whatever their age
    Raises StoreError when there is no store, BundleError when the pointer is damaged: then it cannot be
    known what is served, and nothing is removed; ValueError for a protected bundle that is not there.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    leftovers = store.leftovers(LEFTOVER_AGE.total_seconds())
    present = store.bundle_ids()
    for bundle_id in protected:
        if bundle_id not in present:
            raise ValueError(f"{bundle_id} is to be kept, but store {store.url} does not hold it")
    removable = choose_removable(
        present,
        store.history(),
        keep=keep,
        younger_than=younger_than,
        protected=protected,
        now=now or datetime.now(UTC),
    )
    busy: list[str] = []
    if not dry_run:
        busy = store.remove(removable)
        for name in leftovers:
            store.remove_leftover(name)
    removed = [bundle_id for bundle_id in removable if bundle_id not in busy]
    kept = [bundle_id for bundle_id in present if bundle_id not in removed]
    return Pruned(removed, kept, busy, leftovers)


def choose_removable(
    bundle_ids: Collection[str],
    history: Sequence[str],
    *,
    keep: int,
    younger_than: timedelta,
    protected: Collection[str],
    now: datetime,
) -> list[str]:
    """The bundles that nothing keeps, latest built first.   history: those published, the served one first"""
    built = sorted(bundle_ids, reverse=True)
    published = list(dict.fromkeys(history))
    spared = {*built[:keep], *published[: max(2, keep)], *history[:2], *protected}
    return [name for name in built if name not in spared and now - built_at(name) > younger_than]


def built_at(bundle_id: str) -> datetime:
    """When a bundle was built, as its name says."""
    return datetime.strptime(bundle_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def parse_age(text: str) -> timedelta:
    """`14d`, `36h` or `90m`. Raises ValueError for anything else."""
    match = _AGE.fullmatch(text)
    if not match:
        raise ValueError(f"an age is a number and d, h or m, such as 14d; got {text!r}")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
