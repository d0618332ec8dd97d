"""A store of bundles: what is in it, which one is served, and how that changes.

Nothing is served unverified: publishing and rolling back check every byte of the bundle first and move
the pointer last, so that a kill at any moment leaves the pointer on a complete bundle. With keys, what is
added is signed, and only what is signed is published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

from index_builder.bundle_files import (
    BUNDLE_ID,
    MANIFEST,
    BundleError,
    check_bundle,
    parse_manifest,
    sign_bundle,
)
from index_builder.milvus_access import MilvusAccess
from index_builder.milvus_corpus import Corpus, connect, make_current
from index_builder.pointer import read_pointer, write_pointer
from index_builder.signature import SIGNATURE, SignatureKeyError, sign
from index_builder.storage import ConflictError, StoreError, open_storage

_MAX_ATTEMPTS = 10  # to move a pointer that other publishers move too


@dataclass(frozen=True)
class BundleSummary:
    """One line of a store's list.

    published: 0 for the served bundle, 1 for the one served before it, …; None when it is not in the history
    manifest: empty when the bundle is damaged, and `damage` says how
    """

    bundle_id: str
    published: int | None
    manifest: dict[str, Any]
    damage: str | None = None


class SupersededError(OSError):
    """The store changed while a bundle was built for it: building again helps."""


class Store:
    """Bundles under one path or fsspec URL."""

    def __init__(
        self, url: str | Path, *, keys: Sequence[bytes] = (), milvus: MilvusAccess | None = None
    ) -> None:
        """keys: the first one signs what is added; what is published must be signed with one of them

        milvus: what opens the collections that bundles name; what the environment says when None
        """
        self._storage = open_storage(url)
        self.url = self._storage.url
        self.keys = keys
        self.milvus = milvus or MilvusAccess.of_environment()

    def bundle_url(self, bundle_id: str) -> str:
        """What `load_bundle` takes."""
        return f"{self.url}/{bundle_id}"

    def bundle_ids(self) -> list[str]:
        """Every bundle in the store, published or not, latest built first."""
        return sorted(
            (name for name in self._storage.folder_names() if BUNDLE_ID.fullmatch(name)), reverse=True
        )

    def summaries(self) -> list[BundleSummary]:
        """A summary of every bundle, latest built first. Raises StoreError when there is no store."""
        self._require()
        history = read_pointer(self._storage)
        return [self._summarise(bundle_id, history) for bundle_id in self.bundle_ids()]

    def current(self) -> str | None:
        """The served bundle, or None before the first publication. Raises BundleError: damaged pointer."""
        history = read_pointer(self._storage)
        return history[0] if history else None

    def history(self) -> list[str]:
        """The bundles published, the served one first."""
        return read_pointer(self._storage)

    def check(self, bundle_id: str) -> dict[str, Any]:
        """Verify every byte of a bundle; returns its manifest. Raises StoreError or BundleError."""
        return self._check(bundle_id, self.keys)

    def sign(self, bundle_id: str) -> None:
        """Sign a bundle that is in the store; every byte of it is verified first. Raises as `check` does."""
        if not self.keys:
            raise SignatureKeyError("nothing to sign with: name a key file with --signature-key")
        self._check(bundle_id, ())
        manifest = self._storage.read(f"{bundle_id}/{MANIFEST}")
        if manifest is None:
            raise BundleError(f"bundle {bundle_id} was removed meanwhile")
        with self._storage.lock():
            self._storage.replace(f"{bundle_id}/{SIGNATURE}", sign(manifest, self.keys[0]))

    def publish(self, bundle_id: str, *, instead_of: str | EllipsisType | None = ...) -> None:
        """Verify a bundle, then serve it. Publishing the served one again changes nothing.

        instead_of: the bundle that it was judged against, None: the first; left out: whichever is served.
        A collection in Milvus is checked too, and the alias moved once the pointer has.
        Raises SupersededError when another is served by now.
        """
        corpus = self._check_corpus(bundle_id, self.check(bundle_id))
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                self._publish(bundle_id, instead_of, corpus)
                return
            except ConflictError:
                if attempt == _MAX_ATTEMPTS:
                    raise

    def rollback(self, to: str | None = None) -> str:
        """Serve the bundle published before the served one, or `to`, an earlier one; returns its id.

        What is rolled back leaves the history, so that another rollback goes further back; `publish`
        brings it back. Raises StoreError when there is nothing earlier, BundleError when it is damaged.
        """
        self._require()
        with self._storage.lock():
            history = read_pointer(self._storage)
            if len(history) < 2:
                served = f"{history[0]} is the only bundle" if history else "no bundle was"
                raise StoreError(f"nothing to roll back to in store {self.url}: {served} published so far")
            target = to or history[1]
            if target not in history[1:]:
                raise StoreError(
                    f"bundle {target!r} was not published before {history[0]}: publish it instead"
                )
            corpus = self._check_corpus(target, self.check(target))
            write_pointer(self._storage, history[history.index(target, 1) :])
            self._switch_alias(target, corpus)
        return target

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty local folder to build in, removed with the context (after a kill: by the next one)."""
        with self._storage.staging() as folder:
            yield folder

    def add(self, folder: Path) -> None:
        """Put a sealed bundle from a staging folder, named by its id, into the store; signed with the key."""
        if self.keys:
            sign_bundle(folder, self.keys[0])
        self._storage.add(folder, folder.name)

    def remove(self, bundle_ids: Collection[str]) -> list[str]:
        """Remove bundles that are neither served nor the one before; returns those that are in use.

        They leave the history first. Object storage cannot keep a publication out meanwhile: let the job
        that publishes prune as well.
        """
        self._require()
        busy = []
        with self._storage.lock():
            history = read_pointer(self._storage)
            going = [bundle_id for bundle_id in bundle_ids if bundle_id not in history[:2]]
            remaining = [bundle_id for bundle_id in history if bundle_id not in going]
            if remaining != history:
                write_pointer(self._storage, remaining)
            for bundle_id in going:
                served = bundle_id in read_pointer(self._storage)[:2]  # published since, where no lock helps
                if served or not self._storage.remove(bundle_id):
                    busy.append(bundle_id)
        return busy

    def leftovers(self, min_age_s: float) -> list[str]:
        """What killed processes left in the store at least that long ago. Raises StoreError: no store."""
        self._require()
        return self._storage.leftovers(min_age_s)

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
        self._storage.remove_leftover(name)

    def _check(self, bundle_id: str, keys: Sequence[bytes]) -> dict[str, Any]:
        self._require()
        if bundle_id not in self._storage.folder_names():
            known = ", ".join(self.bundle_ids()[:5]) or "nothing"
            raise StoreError(f"no bundle {bundle_id!r} in store {self.url}; it holds {known}")
        with self._storage.local_copy(bundle_id) as folder:
            return check_bundle(folder, keys=keys)

    def _check_corpus(self, bundle_id: str, manifest: dict[str, Any]) -> Corpus | None:
        """The bundle's collection, complete; None for a bundle that has none. Raises BundleError."""
        try:
            corpus = Corpus.of(manifest)
            if corpus is not None:
                corpus.check(connect(self.milvus, corpus.url))
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"bundle {bundle_id}: {error}") from error
        return corpus

    def _switch_alias(self, bundle_id: str, corpus: Corpus | None) -> None:
        """Raises StoreError when Milvus does not take it: the service needs no alias, other readers do."""
        if corpus is None:
            return
        try:
            make_current(corpus, self.milvus)
        except OSError as error:
            raise StoreError(
                f"{bundle_id} is served, but: {error}; publish it again for the alias"
            ) from error

    def _publish(self, bundle_id: str, instead_of: str | EllipsisType | None, corpus: Corpus | None) -> None:
        with self._storage.lock():
            try:
                history = read_pointer(self._storage)
            except BundleError:
                history = []  # damaged: this publication writes it anew
            if bundle_id not in self._storage.folder_names():
                raise StoreError(f"bundle {bundle_id!r} was removed from store {self.url} meanwhile")
            served = history[0] if history else None
            if instead_of is not ... and served not in (instead_of, bundle_id):
                raise SupersededError(
                    f"store {self.url} serves {served or 'nothing'} by now, no longer "
                    f"{instead_of or 'nothing'}: another builder or a person changed it; run the job again"
                )
            if history[:1] != [bundle_id]:
                write_pointer(self._storage, [bundle_id, *history])
            self._switch_alias(bundle_id, corpus)

    def _summarise(self, bundle_id: str, history: list[str]) -> BundleSummary:
        published = history.index(bundle_id) if bundle_id in history else None
        try:
            data = self._storage.read(f"{bundle_id}/{MANIFEST}")
            if data is None:
                raise BundleError(f"{MANIFEST} is missing")
            return BundleSummary(bundle_id, published, parse_manifest(bundle_id, data))
        except (BundleError, OSError) as error:
            return BundleSummary(bundle_id, published, {}, damage=str(error))

    def _require(self) -> None:
        if not self._storage.exists():
            raise StoreError(f"no bundle store at {self.url}: build a bundle first, or check the path")
