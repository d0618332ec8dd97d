"""A bundle as files: which there are, the manifest that seals them, and the check before anything is parsed.

The folder's name ends in the first 8 hex digits of the manifest's SHA-256; the manifest holds the size
and SHA-256 of every other file. So the name vouches for the manifest and the manifest for the rest: a
flipped bit, a cut, missing or extra file is refused, and named, before a parser sees a byte of it.

With keys, the manifest must also be signed with one of them (`signature.py`).

Files are read through once to be verified, in pieces, and mapped afterwards: a bundle is immutable, and it
may be larger than what a process should hold. Whoever can write into a published bundle is trusted.

Only the standard library here: publishing needs neither torch nor FAISS.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

from index_builder.signature import MAX_SIGNATURE_BYTES, SIGNATURE, is_signed, sign

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
ITEM_IDS = "item_ids.safetensors"
ITEM_ROWS = "item_rows.safetensors"
ITEM_EMBEDDINGS = "item_embeddings.safetensors"
INDEX = "index.faiss"
POPULAR = "popular.json"
CANARY = "canary.json"
FILES = (WEIGHTS, ITEM_IDS, ITEM_ROWS, ITEM_EMBEDDINGS, INDEX, POPULAR, CANARY)
"""What a bundle of this format version holds beside its manifest: these, all of them."""
FEATURES = "features.safetensors"
TITLES = "titles.safetensors"
OPTIONAL_FILES = (FEATURES, TITLES)
"""What it may hold besides, if its manifest lists it; and nothing else."""

FILES_OF_VERSION = {2: tuple(name for name in FILES if name != ITEM_ROWS), FORMAT_VERSION: FILES}
"""The format versions that are read. Version 2 served every item that its model had a row for."""

BUNDLE_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}", re.ASCII)
_MAX_MANIFEST_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class BundleError(ValueError):
    """A bundle that must not be used; the message names the bundle or file and what is wrong with it."""


def seal(folder: Path, manifest: dict[str, Any]) -> str:
    """Write the manifest of the files in `folder`, flush all of it to disk and return the bundle's id.

    manifest: everything but `format_version`, `created` and `files`. The id is unique as long as the
    manifest is: put something unique into it.
    """
    created = datetime.now(UTC)
    names = [*FILES, *(name for name in OPTIONAL_FILES if (folder / name).exists())]
    sealed = {
        "format_version": FORMAT_VERSION,
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        **manifest,
        "files": {name: _describe(folder / name) for name in names},
    }
    data = json.dumps(sealed, indent=1, allow_nan=False).encode()
    if len(data) > _MAX_MANIFEST_BYTES:
        raise BundleError(f"the manifest takes {len(data)} bytes, the limit is {_MAX_MANIFEST_BYTES}")
    (folder / MANIFEST).write_bytes(data)
    for name in (*names, MANIFEST):
        fsync(folder / name)
    fsync(folder)
    return f"{created:%Y%m%dT%H%M%SZ}-{hashlib.sha256(data).hexdigest()[:8]}"


def check_bundle(folder: Path, *, verify: bool = True, keys: Sequence[bytes] = ()) -> dict[str, Any]:
    """Verify every byte of the bundle in `folder` without parsing it; returns the manifest.

    verify=False skips the checksums (for bytes that were checked a moment ago), not names and sizes.
    keys: where there are any, the manifest must be signed with one of them
    """
    manifest = read_manifest(folder, keys=keys)
    for name, expected in manifest["files"].items():
        with _open(folder, name) as handle:
            size_bytes = os.fstat(handle.fileno()).st_size
            if verify and size_bytes == expected["size_bytes"]:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            else:
                digest = expected["sha256"]  # not looked at, or the size says enough
        _compare(folder, name, manifest, size_bytes=size_bytes, digest=digest)
    return manifest


def sign_bundle(folder: Path, key: bytes) -> None:
    """Put the signature of its manifest beside it, flushed to disk."""
    (folder / SIGNATURE).write_bytes(sign((folder / MANIFEST).read_bytes(), key))
    fsync(folder / SIGNATURE)
    fsync(folder)


def read_manifest(folder: Path, *, keys: Sequence[bytes] = ()) -> dict[str, Any]:
    """The manifest, checked against the folder's name; the folder must hold its files and nothing else.

    A link in place of the folder is refused: what it leads to is not in the store.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise BundleError(f"bundle {folder.name} is a link: a bundle must lie in its store")
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}: there is no such folder")
    present = sorted(os.listdir(folder))
    _require_present(folder, MANIFEST, present)
    with _open(folder, MANIFEST) as handle:
        data = handle.read(_MAX_MANIFEST_BYTES + 1)
    if keys:
        _require_signature(folder, data, present, keys)
    manifest = parse_manifest(folder.name, data)
    files = FILES_OF_VERSION[manifest["format_version"]]
    for name in files:
        _require_present(folder, name, present)
    for name in present:
        if name not in (MANIFEST, SIGNATURE, *files, *OPTIONAL_FILES):
            raise BundleError(f"bundle {folder.name}: {name!r} does not belong to a bundle")
    for name in OPTIONAL_FILES:
        if (name in present) != (name in manifest["files"]):
            problem = "is missing" if name not in present else "is not in its manifest"
            raise BundleError(f"bundle {folder.name}: {name} {problem}; publish or build another bundle")
    return manifest


def parse_manifest(bundle_id: str, data: bytes) -> dict[str, Any]:
    """Check a manifest's bytes against the bundle's id, then parse them."""
    if not BUNDLE_ID.fullmatch(bundle_id):
        raise BundleError(
            f"{bundle_id!r} is not a bundle's name (<utc>-<sha8>): a bundle keeps the name it was built with"
        )
    if hashlib.sha256(data).hexdigest()[:8] != bundle_id[-8:]:
        raise BundleError(
            f"bundle {bundle_id}: {MANIFEST} is damaged, its SHA-256 is not the one in the bundle's name"
        )
    try:
        manifest = json.loads(data)
        version, files = manifest["format_version"], manifest["files"]
        if version not in FILES_OF_VERSION:
            readable = " and ".join(map(str, FILES_OF_VERSION))
            raise BundleError(
                f"bundle {bundle_id} has format_version {version!r}, this program reads {readable}: "
                "build it again, or run the program that built it"
            )
        for name in files:
            if name not in (*FILES_OF_VERSION[version], *OPTIONAL_FILES):
                raise BundleError(f"bundle {bundle_id}: {MANIFEST} lists {name!r}, which no bundle holds")
        for name in {*FILES_OF_VERSION[version], *files}:
            size, digest = files[name]["size_bytes"], files[name]["sha256"]
            if type(size) is not int or size < 0 or not _SHA256.fullmatch(digest):
                raise BundleError(f"bundle {bundle_id}: {MANIFEST} has no valid checksum of {name}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"bundle {bundle_id}: {MANIFEST} is not a manifest ({error!r})") from error
    return manifest


def _require_present(folder: Path, name: str, present: list[str]) -> None:
    if name not in present:
        raise BundleError(f"bundle {folder.name}: {name} is missing; publish or build another bundle")


def _require_signature(folder: Path, manifest: bytes, present: list[str], keys: Sequence[bytes]) -> None:
    remedy = "sign it with `t2diff-index sign` if you know where it comes from, or publish one that is"
    if SIGNATURE not in present:
        raise BundleError(f"bundle {folder.name} is not signed, and signature_key is set: {remedy}")
    with _open(folder, SIGNATURE) as handle:
        signature = handle.read(MAX_SIGNATURE_BYTES)
    if not is_signed(manifest, signature, keys):
        raise BundleError(f"bundle {folder.name} is not signed with a key of signature_key: {remedy}")


def _compare(folder: Path, name: str, manifest: dict[str, Any], *, size_bytes: int, digest: str) -> None:
    expected = manifest["files"][name]
    if size_bytes != expected["size_bytes"]:
        raise BundleError(
            f"bundle {folder.name}: {name} is damaged, its size is not the {expected['size_bytes']} bytes "
            "of the manifest"
        )
    if digest != expected["sha256"]:
        raise BundleError(f"bundle {folder.name}: {name} is damaged, its SHA-256 is not the manifest's")


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return {"size_bytes": handle.tell(), "sha256": digest}


def _open(folder: Path, name: str) -> BufferedReader:
    """A plain file of the bundle; a link, pipe or device in its place is refused, never waited for."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"bundle {folder.name}: cannot read {name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"bundle {folder.name}: {name} is not a plain file")
    return open(descriptor, "rb")


def fsync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
