"""What one night is made of: its settings, the log in tonight's numbering, and what names the run."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index_builder.bundle import Bundle
from index_builder.fold_in import Keeping, Pending, pending_items
from index_builder.gate_limits import GateLimits
from index_builder.item_features import read_catalogue
from index_builder.milvus_access import MilvusAccess
from index_builder.nightly_run import key_of
from index_builder.publish import Store
from index_builder.retention import Retention
from index_builder.retirement import RetirementRule
from index_builder.titles import read_titles
from model.data.dataset import Split
from model.data.interactions import Interactions
from model.data.newest_day import newest_day_split, with_vocabulary, within
from model.training import TrainingSettings


@dataclass(frozen=True)
class NightSettings:
    """What a run is asked to do. It is named by all but force, keeping, retention, milvus and the limits.

    history_days, until: which rows of the log count   catalogue: file with items' features
    first, later: training from scratch, and going on   retention: which bundles are kept; None: all
    milvus: of index kind milvus; what the environment says when None
    """

    model_name: str = "t2diff"
    model_config: dict[str, Any] = field(default_factory=dict)
    first: TrainingSettings = field(default_factory=TrainingSettings)
    later: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=3))
    history_days: float = 30.0
    until: int | None = None
    retirement: RetirementRule = field(default_factory=RetirementRule)
    keeping: Keeping = field(default_factory=Keeping)
    retention: Retention | None = None
    catalogue: Path | None = None
    index_kind: str = "auto"
    target_overlap: float = 0.99
    milvus: MilvusAccess | None = None
    from_scratch: bool = False
    force: bool = False
    limits: GateLimits = field(default_factory=GateLimits)


@dataclass(frozen=True, eq=False)
class Night:
    """The inputs of a run, read.

    log: all rows, in tonight's numbering   num_known: items of it that the current bundle has rows for
    added: what all new items of the delta are like, those that the current bundle serves among them
    catalogue: item id -> features   titles: item id -> title
    inputs: what the log and the settings are; with what is pending and the current bundle they name the run
    store_url: where tonight's bundle will be added
    """

    settings: NightSettings
    log: Interactions
    split: Split
    current: Bundle | None
    num_known: int
    pending: Pending
    added: Mapping[str, Mapping[str, float]]
    catalogue: Mapping[str, Sequence[str]] | None
    titles: Mapping[str, str]
    inputs: str
    store_url: str


def read_night(
    settings: NightSettings, store: Store, current: Bundle | None, read: Callable[[], Interactions]
) -> Night:
    catalogue, titles, features = _read_catalogue(settings.catalogue)
    log = within(read(), until=settings.until, days=settings.history_days)
    inputs = key_of({"log": log.fingerprint, "settings": _naming(settings), **features})
    known = None if settings.from_scratch else current
    held = pending_items(store.url, settings.keeping)
    pending = _of_effect(held, current, known, log)
    log = with_vocabulary(
        log,
        known.vocabulary if known else [],
        known.item_index_of if known else {},
        added=list(pending.similar),
    )
    num_known = len(known.vocabulary) if known else 0
    split = newest_day_split(log, num_known=num_known)
    return Night(
        settings=settings,
        log=log,
        split=split,
        current=current,
        num_known=num_known,
        pending=pending,
        added=held.similar,
        catalogue=catalogue,
        titles=titles,
        inputs=inputs,
        store_url=store.url,
    )


def _read_catalogue(
    path: Path | None,
) -> tuple[Mapping[str, Sequence[str]] | None, Mapping[str, str], dict[str, str]]:
    """Features, titles, and what of them names the run. Raises ValueError when the file cannot be used."""
    if path is None:
        return None, {}, {}
    catalogue = read_catalogue(path)
    return catalogue, read_titles(path), {"catalogue": hashlib.sha256(path.read_bytes()).hexdigest()}


def _naming(settings: NightSettings) -> dict[str, Any]:
    """The settings that decide what is built, not how fast, nor whether it is published."""
    asked = dataclasses.asdict(settings)
    for name in ("force", "limits", "until", "keeping", "retention", "catalogue", "milvus"):
        del asked[name]
    for training in ("first", "later"):
        for name in ("device", "num_threads", "save_every_updates"):
            del asked[training][name]
    return asked


def _of_effect(held: Pending, current: Bundle | None, known: Bundle | None, log: Interactions) -> Pending:
    """Without the additions that the current bundle serves, and those that have no place tonight.

    Those stay in the delta: nothing that they are said to be like has a row. All deletions stay, for they
    must hold tonight too.   known: the bundle whose rows go on
    """
    with_rows = set(log.item_ids) | (known.item_index_of.keys() if known else set())
    similar = {
        item_id: likes
        for item_id, likes in held.similar.items()
        if not (current and current.rows.is_served(current.item_index_of.get(item_id)))
        and (item_id in with_rows or not with_rows.isdisjoint(likes))
    }
    return dataclasses.replace(held, similar=similar)


def moment_of(settings: NightSettings) -> int:
    """The moment of the night: the clock's, or that of a day gone by which is built again."""
    clock = int(time.time())
    return clock if settings.until is None else min(clock, settings.until)
