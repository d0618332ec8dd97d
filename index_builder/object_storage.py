"""Bundles in object storage: whole objects only, no rename, no lock.

A PUT shows an object whole or not at all, so the files of a folder go first and its manifest last: a folder
without manifest is not there yet. It goes the other way when a folder is removed, manifest first. A small
file is one PUT. `S3Storage` makes it conditional, so that two publishers cannot lose each other's update;
with any other backend who writes last wins: there, let one job publish and prune.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from index_builder.bundle_files import BUNDLE_ID, MANIFEST, BundleError
from index_builder.owned_folder import abandoned_folders, owned_folder
from index_builder.storage_contract import ConflictError, Storage, StoreError

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_STAGING = "t2diff-staging-"
_DOWNLOAD = "t2diff-bundle-"
_ABANDONED_AFTER_S = 60.0  # between being made and being locked a folder looks abandoned
_UPLOAD = " upload "
_CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "409", "412"}


class ObjectStorage(Storage):
    """Any fsspec file system, with the promises of object storage."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self.url = url.rstrip("/")
        self._file_system = file_system
        self._root = root.rstrip("/")

    def exists(self) -> bool:
        return bool(self._objects(self._root))

    def folder_names(self) -> list[str]:
        return [name for name, paths in self._folders().items() if f"{self._root}/{name}/{MANIFEST}" in paths]

    def read(self, path: str) -> bytes | None:
        with self._contacting():
            try:
                return self._file_system.cat_file(f"{self._root}/{path}")
            except FileNotFoundError:
                return None

    def replace(self, name: str, data: bytes) -> None:
        with self._contacting():
            self._file_system.pipe_file(f"{self._root}/{name}", data)

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with _temporary(_STAGING, None) as folder:
            yield folder

    def add(self, folder: Path, name: str) -> None:
        if name in self.folder_names():
            raise StoreError(f"{name} is in store {self.url} already; bundles are never overwritten")
        with self._contacting():
            try:
                for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
                    self._file_system.put_file(str(path), f"{self._root}/{name}/{path.name}")
            except FileNotFoundError as error:
                raise StoreError(f"cannot add to store {self.url}: {error}; make the bucket first") from error

    @contextmanager
    def local_copy(self, name: str, cache_dir: Path | None = None) -> Iterator[Path]:
        """A download. One that loses its objects, or the connection, to whatever cause is an error."""
        paths = self._objects(f"{self._root}/{name}")
        if f"{self._root}/{name}/{MANIFEST}" not in paths:
            raise BundleError(f"no bundle at {self.url}/{name}")
        with _temporary(_DOWNLOAD, cache_dir) as folder:
            copy = folder / name
            copy.mkdir()
            for path in paths:
                base_name = path.removeprefix(f"{self._root}/{name}/")
                if not _PLAIN_NAME.fullmatch(base_name):
                    raise BundleError(f"bundle {name}: {base_name!r} does not belong to a bundle")
                self._download(path, copy / base_name)
            yield copy

    def _download(self, path: str, to: Path) -> None:
        with self._contacting():
            try:
                self._file_system.get_file(path, str(to))
            except FileNotFoundError as error:
                raise BundleError(
                    f"bundle {to.parent.name}: {to.name} vanished while it was read: was it pruned?"
                ) from error

    def remove(self, name: str) -> bool:
        """Readers on other machines are not known: one that loses its objects refuses the bundle."""
        manifest = f"{self._root}/{name}/{MANIFEST}"
        paths = self._objects(f"{self._root}/{name}")
        with self._contacting():
            if manifest in paths:
                self._file_system.rm_file(manifest)
            for path in paths:
                if path != manifest:
                    self._file_system.rm_file(path)
        return True

    def leftovers(self, min_age_s: float) -> list[str]:
        """Folders without manifest: uploads that were killed, removals that were."""
        return sorted(
            name
            for name, paths in self._folders().items()
            if BUNDLE_ID.fullmatch(name)
            and f"{self._root}/{name}/{MANIFEST}" not in paths
            and self._age_s(paths) >= min_age_s
        )

    def remove_leftover(self, name: str) -> None:
        self.remove(name)

    def _folders(self) -> dict[str, list[str]]:
        """The objects of every folder."""
        folders: dict[str, list[str]] = {}
        for path in self._objects(self._root):
            name, slash, _ = path.removeprefix(f"{self._root}/").partition("/")
            if slash:
                folders.setdefault(name, []).append(path)
        return folders

    def _objects(self, under: str) -> list[str]:
        """Every object below a path now, not what a listing cache remembers."""
        with self._contacting():
            self._file_system.invalidate_cache()
            try:
                return self._file_system.find(under)
            except FileNotFoundError:
                return []

    def _age_s(self, paths: list[str]) -> float:
        with self._contacting():
            return time.time() - max(self._file_system.modified(path).timestamp() for path in paths)

    @contextmanager
    def _contacting(self) -> Iterator[None]:
        """Every backend has error classes of its own for no connection and no credentials."""
        try:
            yield
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise OSError(f"cannot use store {self.url}: {error}") from error


class S3Storage(ObjectStorage):
    """S3 and what speaks its protocol: a small file is replaced only if it still is what was read.

    A server that ignores If-Match and If-None-Match has the promises of `ObjectStorage`.
    """

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        super().__init__(url, file_system, root)
        for library in ("aiobotocore", "botocore", "s3fs"):
            logging.getLogger(library).setLevel(logging.WARNING)  # below it they log signatures and tokens
        self._one_updater = threading.Lock()
        self._read_as: dict[str, str | None] | None = None  # file -> its ETag, None for no file

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps out the other threads; processes are noticed by `replace`."""
        with self._one_updater:
            self._read_as = {}
            try:
                yield
            finally:
                self._read_as = None

    def read(self, path: str) -> bytes | None:
        if self._read_as is None:
            return super().read(path)
        with self._contacting():
            try:  # the tag first: when the content is a newer one, the update is refused and nothing lost
                tag = self._file_system.info(f"{self._root}/{path}", refresh=True)["ETag"]
            except FileNotFoundError:
                tag = None
        data = super().read(path) if tag else None
        self._read_as[path] = tag if data is not None else None
        return data

    def replace(self, name: str, data: bytes) -> None:
        if self._read_as is None or name not in self._read_as:
            super().replace(name, data)
            return
        tag = self._read_as.pop(name)
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        with self._contacting():
            try:
                self._file_system.pipe_file(f"{self._root}/{name}", data, **condition)
            except OSError as error:
                if not _is_conflict(error):
                    raise
                # a PUT that was repeated because its answer got lost meets what it wrote itself
                if super().read(name) != data:
                    raise ConflictError(
                        f"{name} of store {self.url} was replaced by another process meanwhile: try again"
                    ) from error

    def leftovers(self, min_age_s: float) -> list[str]:
        """Also the parts of large files whose upload was killed: they are paid for and never show."""
        try:
            uploads = self._call("list_multipart_uploads", Prefix=self._prefix).get("Uploads", [])
        except OSError:
            uploads = []  # not allowed, or not known to this server: a rule of the bucket must clear them
        unfinished = [
            f"{upload['Key'].removeprefix(self._prefix)}{_UPLOAD}{upload['UploadId']}"
            for upload in uploads
            if time.time() - upload["Initiated"].timestamp() >= min_age_s
        ]
        return super().leftovers(min_age_s) + sorted(unfinished)

    def remove_leftover(self, name: str) -> None:
        path, upload, upload_id = name.partition(_UPLOAD)
        if upload:
            self._call("abort_multipart_upload", Key=self._prefix + path, UploadId=upload_id)
        else:
            super().remove_leftover(name)

    @property
    def _prefix(self) -> str:
        """What the keys of this store begin with."""
        return self._root.partition("/")[2] + "/" if "/" in self._root else ""

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        with self._contacting():
            return self._file_system.call_s3(method, Bucket=self._root.partition("/")[0], **arguments)


def _is_conflict(error: OSError) -> bool:
    response = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or response.get("Error", {}).get("Code") in _CONFLICTS


@contextmanager
def _temporary(prefix: str, parent: Path | None) -> Iterator[Path]:
    """A temporary folder; what killed processes left beside it goes first, for it is as large as a bundle."""
    beside = parent or Path(tempfile.gettempdir())
    for abandoned in abandoned_folders(prefix, beside, min_age_s=_ABANDONED_AFTER_S):
        shutil.rmtree(abandoned, ignore_errors=True)
    with owned_folder(prefix, beside) as folder:
        yield folder
