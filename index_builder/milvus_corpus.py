"""The item embeddings of one bundle as a collection of Milvus: made with it, named in it, gone with it.

A bundle's id is the hash of its manifest, and the manifest names the collection; so the collection is named
after the manifest's `build`, which is as unique and known before. The manifest vouches for the name, and the
collection carries a mark with the same build and the checksum of the embeddings: a user tower can meet only
the embeddings that it was built with. The alias CURRENT is for other readers; nothing here searches by it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from index_builder.milvus_access import MilvusAccess, check_milvus_url

if TYPE_CHECKING:
    import numpy as np

    from index_builder.milvus_index import Milvus

KIND = "milvus"
CURRENT = "t2diff_current"
_PREFIX = "t2diff_"
_NAME = re.compile(_PREFIX + "([0-9a-f]{32})", re.ASCII)
_MAX_FLAT_ITEMS = 30_000
_MAX_LISTS = 65_536  # Milvus's own limit
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Corpus:
    """A collection, as the manifest of its bundle records it.

    url: where it was made   build: the bundle's   num_lists: of its inverted file, 0 when it has none
    num_items, dim: M and D   sha256: of the embeddings' bytes, float32, row by row
    """

    url: str
    collection: str
    build: str
    num_lists: int
    num_items: int
    dim: int
    sha256: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Corpus | None:
        """None for a bundle of another kind. Raises ValueError, KeyError or TypeError for a broken record."""
        if manifest["index"]["kind"] != KIND:
            return None
        corpus = cls(**manifest["index"][KIND])
        check_milvus_url(corpus.url)
        if corpus.collection != _PREFIX + corpus.build or corpus.build != manifest["build"]:
            raise ValueError(f"collection {corpus.collection!r} is not that of build {manifest['build']!r}")
        if corpus.num_items != manifest["counts"]["items"]:
            raise ValueError(f"it is said to hold {corpus.num_items} of {manifest['counts']['items']} items")
        return corpus

    def record(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return asdict(self)

    def check(self, milvus: Milvus) -> None:
        """Load the collection and hold it to the record. Raises ValueError, or MilvusError (an OSError)."""
        told = milvus.describe(self.collection)
        where = f"collection {self.collection} at {milvus.url}"
        if told is None:
            raise ValueError(
                f"{where} is missing: build the bundle again, or say where it is now (T2DIFF_MILVUS_URL)"
            )
        if (told.mark.get("build"), told.mark.get("sha256")) != (self.build, self.sha256):
            raise ValueError(f"{where} is not that of this bundle: its mark is {dict(told.mark)}")
        if told.dim != self.dim:
            raise ValueError(
                f"{where} holds embeddings of {told.dim} dimensions, the bundle's have {self.dim}"
            )
        milvus.load(self.collection)
        held = milvus.count(self.collection)
        if held != self.num_items:
            raise ValueError(f"{where} holds {held} rows for {self.num_items} items: build the bundle again")


def connect(access: MilvusAccess, url: str) -> Milvus:
    """The server at `url`, or where `access` says. Raises ValueError without pymilvus, MilvusError."""
    try:
        from index_builder.milvus_index import Milvus
    except ImportError as error:
        raise ValueError(
            f"index kind milvus needs the extra `milvus` (pip install 't2diff-recall[milvus]'): {error}"
        ) from None
    return Milvus(access.url or url, access)


def write_corpus(
    access: MilvusAccess,
    embeddings: np.ndarray,
    item_ids: Sequence[str],
    *,
    build: str,
    store_url: str,
    exact: bool,
) -> Corpus:
    """A new collection of these embeddings, complete, indexed and counted.

    embeddings: (M, D) float32   item_ids: of the M rows   build: the manifest's, 32 hex digits
    store_url: which store's pruning may drop it   exact: whether no neighbour may be missed
    Raises ValueError without a URL, MilvusError (an OSError) when the server refuses; then nothing is
    left of it, as far as the server can still be told.
    """
    if access.url is None:
        raise ValueError(
            "index kind milvus needs to know where Milvus is: give --milvus-url or set T2DIFF_MILVUS_URL"
        )
    milvus = connect(access, access.url)
    num_lists = 0 if exact or len(embeddings) <= _MAX_FLAT_ITEMS else _list_count(len(embeddings))
    corpus = Corpus(
        url=access.url,
        collection=_PREFIX + build,
        build=build,
        num_lists=num_lists,
        num_items=len(embeddings),
        dim=embeddings.shape[1],
        sha256=_digest(embeddings),
    )
    mark = {
        "build": build,
        "sha256": corpus.sha256,
        "store": store_url,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    try:
        milvus.create(corpus.collection, dim=corpus.dim, mark=mark)
        milvus.fill(corpus.collection, embeddings, item_ids, num_lists=num_lists)
        corpus.check(milvus)
    except BaseException:
        discard(corpus, access)
        raise
    return corpus


def discard(corpus: Corpus, access: MilvusAccess) -> None:
    """Drop the collection of a build that came to nothing; what cannot be dropped now, `prune` will find."""
    try:
        connect(access, corpus.url).drop(corpus.collection)
    except OSError:
        return


@contextmanager
def discarding_on_failure(corpus: Corpus | None, access: MilvusAccess | None) -> Iterator[None]:
    """`discard` the collection, where there is one, if what follows fails."""
    try:
        yield
    except BaseException:
        if corpus is not None and access is not None:
            discard(corpus, access)
        raise


def make_current(corpus: Corpus, access: MilvusAccess) -> None:
    """Let the alias CURRENT name this corpus. Raises MilvusError."""
    connect(access, corpus.url).point(CURRENT, corpus.collection)


def drop_unused(
    milvus: Milvus,
    *,
    store_url: str,
    kept: Collection[str],
    removed: Collection[str],
    younger_than: timedelta,
    now: datetime,
    dry_run: bool,
) -> list[str]:
    """Drop what no bundle of a store needs any more; returns the collections' names.

    kept: builds of the bundles that stay   removed: of those that just went
    younger_than: others, of builds that were refused or killed, stay for so long
    Only collections with our mark and this store's URL in it are ever dropped.
    """
    dropped = []
    for name in sorted(milvus.names()):
        match = _NAME.fullmatch(name)
        if match is None or match[1] in kept:
            continue
        told = milvus.describe(name)
        if told is None or told.mark.get("build") != match[1] or told.mark.get("store") != store_url:
            continue
        if match[1] not in removed and now - _created(told.mark, now) <= younger_than:
            continue
        if not dry_run:
            milvus.drop(name)
        dropped.append(name)
    return dropped


def _list_count(num_items: int) -> int:
    """As Milvus advises.

    A graph was no choice: by inner product it found 0.86 of the best 100 at any width (milvus-lite, 4,000
    items as of `clustered_embeddings`); lists find all of them when all are visited.
    """
    return min(_MAX_LISTS, round(4 * num_items**0.5))


def _created(mark: Mapping[str, Any], now: datetime) -> datetime:
    try:
        return datetime.fromisoformat(mark["created"])
    except (KeyError, TypeError, ValueError):
        return now  # nobody knows: it stays


def _digest(embeddings: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(embeddings), _BLOCK_ROWS):
        digest.update(embeddings[start : start + _BLOCK_ROWS].astype("<f4", order="C", copy=False).data)
    return digest.hexdigest()
