"""Where bundles live: a local folder, or anything else that an fsspec URL names.

Both promise the same: a folder appears complete or not at all, and a small file is replaced in one
piece. Locally that is write, fsync, rename, fsync of the parent. Object storage has no rename, but a PUT
shows whole objects only: the files of a folder go first and its manifest last, and who writes the small
file last wins (there is no lock; let one job publish).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from index_builder.bundle_files import MANIFEST, BundleError, fsync

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)


class StoreError(ValueError):
    """A store that cannot do what was asked; the message says why and what would help."""


def open_storage(url: str | Path) -> Storage:
    """The storage behind a path or URL; nothing is created or contacted yet.

    Raises StoreError for a URL that no installed fsspec backend serves.
    """
    try:
        file_system, path = fsspec.core.url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        raise StoreError(f"cannot open store {str(url)!r}: {error}") from error
    if isinstance(file_system, LocalFileSystem):
        return LocalStorage(Path(path))
    return ObjectStorage(str(url), file_system, path)


class Storage(ABC):
    """A flat collection of folders and of small files beside them."""

    url: str

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is there."""

    @abstractmethod
    def folder_names(self) -> list[str]:
        """The names of the folders; none when the storage does not exist."""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """A small file's content, or None when there is none. Raises OSError when it is unreadable."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Make `data` the content of a small file: readers see the old or the new, never a part."""

    @abstractmethod
    def lock(self) -> Any:
        """A context in which no other process changes small files."""

    @abstractmethod
    def staging(self) -> Any:
        """A context with an empty local folder to prepare things in, removed at its end."""

    @abstractmethod
    def add(self, folder: Path, name: str) -> None:
        """Let a prepared folder appear under `name`. Raises StoreError when the name is taken."""

    @abstractmethod
    def local_copy(self, name: str, cache_dir: Path | None = None) -> Any:
        """A context with the local path of a folder: itself, or a download that is removed at its end."""


class LocalStorage(Storage):
    """A folder on this machine or on a mounted file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def exists(self) -> bool:
        return self.root.is_dir()

    def folder_names(self) -> list[str]:
        return [entry.name for entry in os.scandir(self.root) if entry.is_dir()] if self.exists() else []

    def read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace(self, name: str, data: bytes) -> None:
        beside = self.root / f".{name}.new"  # the caller holds the lock: one writer
        with beside.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, self.root / name)
        fsync(self.root)

    @contextmanager
    def lock(self) -> Iterator[None]:
        with (self.root / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store {self.url} is a file, it must be a folder")
        self.root.mkdir(parents=True, exist_ok=True)
        with self.lock():
            self._remove_abandoned()
            folder = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.root))
            owner = (folder / ".lock").open("w")
            fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            owner.close()

    def add(self, folder: Path, name: str) -> None:
        target = self.root / name
        if target.exists():
            raise StoreError(f"{name} is in store {self.url} already; bundles are never overwritten")
        os.rename(folder, target)
        fsync(self.root)

    @contextmanager
    def local_copy(self, name: str, cache_dir: Path | None = None) -> Iterator[Path]:
        yield self.root / name

    def _remove_abandoned(self) -> None:
        """Remove what killed builders left: a staging folder whose owner no longer holds its lock."""
        for folder in self.root.glob(".staging-*"):
            try:
                with (folder / ".lock").open("a") as owner:
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError:
                pass  # killed before it had a lock file: nobody owns it, or we may not touch it
            shutil.rmtree(folder, ignore_errors=True)


class ObjectStorage(Storage):
    """Any other fsspec file system, with the promises of object storage."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self.url = url.rstrip("/")
        self._file_system = file_system
        self._root = root.rstrip("/")

    def exists(self) -> bool:
        return bool(self._entries(self._root))

    def folder_names(self) -> list[str]:
        return [_base_name(entry) for entry in self._entries(self._root) if entry["type"] == "directory"]

    def read(self, path: str) -> bytes | None:
        try:
            return self._file_system.cat_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return None

    def replace(self, name: str, data: bytes) -> None:
        self._file_system.pipe_file(f"{self._root}/{name}", data)

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="t2diff-staging-") as folder:
            yield Path(folder)

    def add(self, folder: Path, name: str) -> None:
        if self._entries(f"{self._root}/{name}"):
            raise StoreError(f"{name} is in store {self.url} already; bundles are never overwritten")
        self._file_system.makedirs(f"{self._root}/{name}", exist_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
            self._file_system.put_file(str(path), f"{self._root}/{name}/{path.name}")

    @contextmanager
    def local_copy(self, name: str, cache_dir: Path | None = None) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="t2diff-bundle-", dir=cache_dir) as folder:
            copy = Path(folder) / name
            entries = self._entries(f"{self._root}/{name}")
            if not entries:
                raise BundleError(f"no bundle at {self.url}/{name}")
            copy.mkdir()
            for entry in entries:
                base_name = _base_name(entry)
                if entry["type"] != "file" or not _PLAIN_NAME.fullmatch(base_name):
                    raise BundleError(f"bundle {name}: {base_name!r} does not belong to a bundle")
                self._file_system.get_file(entry["name"], str(copy / base_name))
            yield copy

    def _entries(self, path: str) -> list[dict[str, Any]]:
        """What is in a folder now, not what a listing cache remembers."""
        self._file_system.invalidate_cache()
        try:
            entries = self._file_system.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return [entry for entry in entries if entry["name"].strip("/") != path.strip("/")]


def _base_name(entry: dict[str, Any]) -> str:
    return entry["name"].rstrip("/").rpartition("/")[2]
