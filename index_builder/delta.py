"""`DELTA`: items that are newer than the served bundle, and items that must not be recalled any more.

One small file beside the pointer, replaced in one piece under the store's lock. It *defines* new items, by
the items consumed together with them and by features, and never holds embeddings: bundles have different
spaces, so every service computes them against its own. Two lines of JSON: the format with the SHA-256 of the
second line, and the content; a flipped bit is refused before anything is parsed.

Only the standard library here: adding and deleting need neither torch nor FAISS.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from index_builder.storage import Storage, StoreError, open_storage

DELTA = "DELTA"
FORMAT_VERSION = 1
MAX_ITEMS = 10_000
MAX_DELETED = 100_000
MAX_SIMILAR = 64
MAX_FEATURES = 64
MAX_CHARACTERS = 128
MAX_BYTES = 64 * 2**20
MAX_WEIGHT = 1e9
KEEP_ITEMS_DAYS = 3.0
"""How long `fold` keeps an item that the new bundle holds: after a rollback it is new once more."""
KEEP_DELETED_DAYS = 30.0
"""How long `fold` keeps a deletion that a new bundle knows of: older bundles and logs still hold the item."""
_DAY_S = 86_400
_MAX_ATTEMPTS = 20


class DeltaError(ValueError):
    """A delta, or a change to it, that cannot be used; the message names what is wrong and the remedy."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """What is known of an item that no model was trained on.

    similar: item id -> weight, of items consumed in the same sessions   features: tokens such as genre=Drama
    added: unix seconds
    """

    item_id: str
    similar: Mapping[str, float] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    added: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """The content of one version of the file.   items: by item id   deleted: item id -> unix seconds

    revision: counts the changes   digest: SHA-256 (hex) of the content   updated: unix seconds
    """

    items: Mapping[str, NewItem]
    deleted: Mapping[str, int]
    revision: int = 0
    digest: str = ""
    updated: int = 0

    @property
    def version(self) -> str:
        """Names the content in answers and logs."""
        return f"{self.revision}-{self.digest[:8]}" if self.revision else "none"


EMPTY = Delta({}, {})


class DeltaFile:
    """The delta of one store; every change is a read and a replacement under the store's lock."""

    def __init__(self, store_url: str | Path) -> None:
        self._storage: Storage = open_storage(store_url)
        self.url = self._storage.url

    def read_bytes(self) -> bytes | None:
        """The file as it is, to be decoded when it changed; None when there is none. Raises OSError."""
        return self._storage.read(DELTA)

    def read(self) -> Delta:
        """The present content. Raises DeltaError when the file is damaged or unreadable."""
        try:
            data = self.read_bytes()
        except OSError as error:
            raise DeltaError(f"cannot read {DELTA} of store {self.url}: {error}") from error
        try:
            return EMPTY if data is None else decode_delta(data)
        except DeltaError as error:
            raise DeltaError(
                f"{DELTA} of store {self.url} {error}: restore it, or remove it and add and delete again"
            ) from None

    def entries(self) -> list[NewItem]:
        """The new items, in the order in which they were added."""
        return list(self.read().items.values())

    def deleted(self) -> list[str]:
        """The ids that must not be recalled, in the order in which they were deleted."""
        return list(self.read().deleted)

    def add(self, items: Iterable[NewItem]) -> Delta:
        """Add new items, now; one that is there already is defined anew.

        Raises DeltaError for an item that is defined wrongly, that was deleted, or is one too many.
        """
        added = {item.item_id: item for item in items}
        for item in added.values():
            check_item(item)

        def change(delta: Delta, now: int) -> Delta:
            gone = [item_id for item_id in added if item_id in delta.deleted]
            if gone:
                raise DeltaError(f"item {gone[0]!r} was deleted: undelete it before it is added again")
            new = {item_id: replace(item, added=now) for item_id, item in added.items()}
            kept = {item_id: item for item_id, item in delta.items.items() if item_id not in added}
            if len(kept) + len(new) > MAX_ITEMS:
                raise DeltaError(
                    f"{len(kept)} new items and {len(new)} more are above the limit of {MAX_ITEMS}: build a "
                    "bundle that holds them, or delete some"
                )
            return replace(delta, items=kept | new)

        return self._change(change)

    def delete(self, item_ids: Iterable[str]) -> Delta:
        """Never recall these items again, whether they are new or in a bundle. Raises DeltaError."""
        gone = list(dict.fromkeys(item_ids))
        for item_id in gone:
            _check_text(item_id, "item_id")

        def change(delta: Delta, now: int) -> Delta:
            deleted = {**delta.deleted, **{i: now for i in gone if i not in delta.deleted}}
            if len(deleted) > MAX_DELETED:
                raise DeltaError(
                    f"{len(deleted)} deleted items are above the limit of {MAX_DELETED}: build a bundle "
                    "without them"
                )
            items = {item_id: item for item_id, item in delta.items.items() if item_id not in deleted}
            return replace(delta, items=items, deleted=deleted)

        return self._change(change)

    def undelete(self, item_ids: Iterable[str]) -> Delta:
        """Allow items to be recalled and added again; a new one must be added again. Raises DeltaError."""
        back = set(item_ids)

        def change(delta: Delta, now: int) -> Delta:
            unknown = sorted(back - delta.deleted.keys())
            if unknown:
                raise DeltaError(f"item {unknown[0]!r} is not deleted in store {self.url}")
            return replace(delta, deleted={i: at for i, at in delta.deleted.items() if i not in back})

        return self._change(change)

    def fold(
        self,
        item_ids: Collection[str],
        *,
        keep_items_days: float = KEEP_ITEMS_DAYS,
        keep_deleted_days: float = KEEP_DELETED_DAYS,
    ) -> Delta:
        """Drop what a new bundle has made needless; the bundle's own items win over it meanwhile.

        item_ids: what the new bundle serves. A new item goes when the bundle holds it, a deletion when the
        bundle does not hold the item; both only after some days, so that a rollback finds them.
        """
        served = item_ids if isinstance(item_ids, set | frozenset | Mapping) else frozenset(item_ids)

        def change(delta: Delta, now: int) -> Delta:
            young, young_deletion = now - keep_items_days * _DAY_S, now - keep_deleted_days * _DAY_S
            items = {i: item for i, item in delta.items.items() if i not in served or item.added > young}
            deleted = {i: at for i, at in delta.deleted.items() if i in served or at > young_deletion}
            return replace(delta, items=items, deleted=deleted)

        return self._change(change)

    def _change(self, change: Callable[[Delta, int], Delta]) -> Delta:
        if not self._storage.exists():
            raise DeltaError(f"no bundle store at {self.url}: build a bundle first, or check the path")
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            with self._storage.lock():
                before, now = self.read(), int(time.time())
                after = change(before, now)
                if after == before:
                    return before
                data = encode_delta(replace(after, revision=before.revision + 1, updated=now))
                try:
                    self._storage.replace(DELTA, data)
                    return decode_delta(data)
                except StoreError as error:  # where no lock keeps others out: one of them was faster
                    if attempt == _MAX_ATTEMPTS:
                        raise DeltaError(f"{error} ({attempt} times)") from error
            time.sleep(random.uniform(0, 0.05 * attempt))  # two that met once would meet again
        raise AssertionError("the last attempt returns or raises")


def encode_delta(delta: Delta) -> bytes:
    """The file's bytes. Raises DeltaError when they are too many."""
    items = [
        {"item_id": i.item_id, "similar_item_ids": dict(i.similar), "features": list(i.features)}
        | {"added": i.added}
        for i in delta.items.values()
    ]
    content = {"revision": delta.revision, "updated": delta.updated, "items": items}
    body = json.dumps({**content, "deleted": dict(delta.deleted)}, allow_nan=False).encode()
    if len(body) > MAX_BYTES:
        raise DeltaError(
            f"the delta would take {len(body)} bytes, the limit is {MAX_BYTES}: fold it, or add less"
        )
    head = {"format_version": FORMAT_VERSION, "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(head).encode() + b"\n" + body + b"\n"


def decode_delta(data: bytes) -> Delta:
    """The inverse of `encode_delta`. Raises DeltaError, "is …", for anything else."""
    head_line, _, rest = data.partition(b"\n")
    body = rest.removesuffix(b"\n")
    try:
        head = json.loads(head_line) if len(head_line) < 1024 else {}
        version, digest = head["format_version"], head["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DeltaError("is damaged, its first line is not that of a delta") from None
    if version != FORMAT_VERSION:
        raise DeltaError(f"has format_version {version!r}, this program reads {FORMAT_VERSION}")
    if hashlib.sha256(body).hexdigest() != digest:
        raise DeltaError("is damaged, its SHA-256 is not the one in its first line")
    try:
        return _parse(json.loads(body), digest)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DeltaError(f"is not a delta ({error!r})") from None


def check_item(item: NewItem) -> None:
    """Raises DeltaError unless the definition is complete and within the limits."""
    _check_text(item.item_id, "item_id")
    for name, values, most in (
        ("similar_item_ids", item.similar, MAX_SIMILAR),
        ("features", item.features, MAX_FEATURES),
    ):
        if len(values) > most:
            raise DeltaError(f"item {item.item_id!r} has {len(values)} {name}: give at most {most}")
        for value in values:
            _check_text(value, name)
    for other, weight in item.similar.items():
        if type(weight) not in (int, float) or not (math.isfinite(weight) and 0 < weight <= MAX_WEIGHT):
            raise DeltaError(
                f"item {item.item_id!r}: similar_item_ids gives {other!r} the weight {weight!r}: "
                f"it must be above 0, at most {MAX_WEIGHT:g}"
            )
    if not any(other != item.item_id for other in item.similar) and not item.features:
        raise DeltaError(
            f"item {item.item_id!r} has neither similar_item_ids nor features: without one of them nobody "
            "can be matched with it"
        )


def _check_text(value: object, name: str) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_CHARACTERS or not value.isprintable():
        shown = ascii(value)[:60]
        raise DeltaError(f"{name}: got {shown}; it must be 1 to {MAX_CHARACTERS} printable characters")


def _parse(content: Any, digest: str) -> Delta:
    items = {}
    for entry in content["items"]:
        similar = {name: float(weight) for name, weight in entry["similar_item_ids"].items()}
        item = NewItem(entry["item_id"], similar, tuple(entry["features"]), int(entry["added"]))
        check_item(item)
        items[item.item_id] = item
    deleted = {name: int(at) for name, at in content["deleted"].items()}
    for name in deleted:
        _check_text(name, "deleted")
    if len(items) > MAX_ITEMS or len(deleted) > MAX_DELETED or items.keys() & deleted.keys():
        raise ValueError("its items and deletions break the limits")
    return Delta(items, deleted, int(content["revision"]), digest, int(content["updated"]))
