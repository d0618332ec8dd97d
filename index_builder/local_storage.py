"""Bundles in a folder of this machine or a mounted file system: write, fsync, rename, fsync of the parent."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from index_builder.bundle_files import fsync
from index_builder.owned_folder import abandoned_folders, is_locked, owned_folder
from index_builder.storage_contract import Storage, StoreError

_STAGING = ".staging-"
_REMOVING = ".removing-"


class LocalStorage(Storage):
    """One folder; processes keep out of each other's way by `flock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def exists(self) -> bool:
        return self.root.is_dir()

    def folder_names(self) -> list[str]:
        """A link to a folder is none: what it leads to may lie anywhere."""
        if not self.exists():
            return []
        return [entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)]

    def read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace(self, name: str, data: bytes) -> None:
        beside = self.root / f".{name.replace('/', '-')}.new"  # the caller holds the lock: one writer
        with beside.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, self.root / name)
        fsync((self.root / name).parent)

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
        with ExitStack() as owned:
            with self.lock():  # nobody takes the new folder for an abandoned one before it is locked
                for abandoned in abandoned_folders(_STAGING, self.root):
                    shutil.rmtree(abandoned, ignore_errors=True)
                folder = owned.enter_context(owned_folder(_STAGING, self.root))
            yield folder

    def add(self, folder: Path, name: str) -> None:
        target = self.root / name
        if target.exists():
            raise StoreError(f"{name} is in store {self.url} already; bundles are never overwritten")
        os.rename(folder, target)
        fsync(self.root)

    @contextmanager
    def local_copy(self, name: str, cache_dir: Path | None = None) -> Iterator[Path]:
        """The folder itself. While the context lasts, `remove` leaves it alone."""
        folder = self.root / name
        try:
            reader = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            yield folder  # missing: whoever reads it says so
            return
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(reader, fcntl.LOCK_SH)
            yield folder
        finally:
            os.close(reader)

    def remove(self, name: str) -> bool:
        """Renamed first: it vanishes whole, and what a kill leaves of it is never listed."""
        folder, removing = self.root / name, self.root / f"{_REMOVING}{name}"
        if is_locked(folder):
            return False
        with suppress(FileNotFoundError):
            os.rename(folder, removing)
            fsync(self.root)
        shutil.rmtree(removing, ignore_errors=True)
        return True

    def leftovers(self, min_age_s: float) -> list[str]:
        if not self.exists():
            return []
        with self.lock():
            staged = abandoned_folders(_STAGING, self.root, min_age_s=min_age_s)
        return sorted(folder.name for folder in [*staged, *self.root.glob(f"{_REMOVING}*")])

    def remove_leftover(self, name: str) -> None:
        shutil.rmtree(self.root / name, ignore_errors=True)
