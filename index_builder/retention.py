"""Which bundles of a store are kept, and removing the others.

A bundle is kept when any of this holds: it is the current one, or the one that a rollback would go to; it
is among the N latest built or the N latest published; it is younger than a given age; it was named. The
pointer forgets a bundle before the bundle goes, and it vanishes whole: a kill at any moment leaves bundles
that are complete and listed, and leftovers that are neither.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from index_builder.milvus_corpus import Corpus, connect, drop_unused
from index_builder.publish import Store

if TYPE_CHECKING:
    from index_builder.milvus_index import Milvus

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
    collections: in Milvus, of bundles that are gone or never came to be
    """

    removed: list[str]
    kept: list[str]
    busy: list[str]
    leftovers: list[str]
    collections: list[str] = field(default_factory=list)


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
    Collections in Milvus go with their bundles; those without one are kept up to that age, a day at least.
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
    now = now or datetime.now(UTC)
    corpora = _corpora(store)
    servers = _servers(store, corpora)  # before anything goes: what is not reached now would be forgotten
    busy: list[str] = []
    if not dry_run:
        busy = store.remove(removable)
        for name in leftovers:
            store.remove_leftover(name)
    removed = [bundle_id for bundle_id in removable if bundle_id not in busy]
    kept = [bundle_id for bundle_id in present if bundle_id not in removed]
    age = max(younger_than, LEFTOVER_AGE)
    needed = {corpus.build for name, corpus in corpora.items() if corpus and name not in removed}
    gone = {corpus.build for name, corpus in corpora.items() if corpus and name in removed}
    collections = [
        name
        for server in servers
        for name in drop_unused(
            server,
            store_url=store.url,
            kept=needed,
            removed=gone,
            younger_than=age,
            now=now,
            dry_run=dry_run,
        )
    ]
    return Pruned(removed, kept, busy, leftovers, collections)


def _corpora(store: Store) -> dict[str, Corpus | None]:
    """What each bundle has in Milvus; nothing where one is damaged: nobody knows what that one needs."""
    corpora = {}
    for summary in store.summaries():
        try:
            corpora[summary.bundle_id] = Corpus.of(summary.manifest)
        except (ValueError, KeyError, TypeError):
            return {}
    return corpora


def _servers(store: Store, corpora: dict[str, Corpus | None]) -> list[Milvus]:
    """Those that bundles name, or the one that the environment names instead. Raises MilvusError."""
    urls = {corpus.url for corpus in corpora.values() if corpus}
    if urls and store.milvus.url:
        urls = {store.milvus.url}
    return [connect(store.milvus, url) for url in sorted(urls)]


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
