"""What every place for bundles promises: folders appear and vanish whole, small files change in one piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class StoreError(ValueError):
    """A store that cannot do what was asked; the message says why and what would help."""


class ConflictError(StoreError):
    """Somebody else replaced a small file between our reading and our writing it: nothing was written."""


class Storage(ABC):
    """A flat collection of folders and of small files beside them.

    Whatever goes wrong with the disk or the network is an OSError.
    """

    url: str

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is there."""

    @abstractmethod
    def folder_names(self) -> list[str]:
        """The names of the folders that are there whole; none when the storage does not exist."""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """A small file's content, or None when there is none. Raises OSError when it is unreadable."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Make `data` the content of a small file: readers see the old or the new, never a part.

        Raises ConflictError where `lock` cannot keep others out, and one of them replaced the file since it
        was read within the lock.
        """

    @abstractmethod
    def lock(self) -> Any:
        """A context for reading and then replacing small files: no update of another process gets lost."""

    @abstractmethod
    def staging(self) -> Any:
        """A context with an empty local folder to prepare things in, removed at its end."""

    @abstractmethod
    def add(self, folder: Path, name: str) -> None:
        """Let a prepared folder appear under `name`. Raises StoreError when the name is taken."""

    @abstractmethod
    def local_copy(self, name: str, cache_dir: Path | None = None) -> Any:
        """A context with the local path of a folder: itself, or a download that is removed at its end."""

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Let a folder vanish; false, and nothing happens, when a process on this machine is reading it."""

    @abstractmethod
    def leftovers(self, min_age_s: float) -> list[str]:
        """What processes that were killed left at least that long ago, and nobody works on."""

    @abstractmethod
    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`."""
