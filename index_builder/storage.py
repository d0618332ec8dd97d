"""Where bundles live: a local folder, or anything else that an fsspec URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from index_builder.local_storage import LocalStorage
from index_builder.object_storage import ObjectStorage, S3Storage
from index_builder.storage_contract import ConflictError, Storage, StoreError

__all__ = [
    "ConflictError",
    "LocalStorage",
    "ObjectStorage",
    "S3Storage",
    "Storage",
    "StoreError",
    "open_storage",
]


def open_storage(url: str | Path) -> Storage:
    """The storage behind a path or URL; nothing is created or contacted yet.

    Credentials and endpoints come from the backend's own environment variables and files. Raises StoreError
    for a URL that holds a password, or that no installed fsspec backend serves.
    """
    if "://" in str(url) and urlsplit(str(url)).password is not None:
        raise StoreError(
            "a store's URL is logged and shown, so it must not hold a password: "
            "give it in the environment variables of the fsspec backend"
        )
    try:
        file_system, path = fsspec.core.url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        remedy = " (pip install 't2diff-recall[s3]')" if str(url).startswith(("s3://", "s3a://")) else ""
        raise StoreError(f"cannot open store {str(url)!r}: {error}{remedy}") from error
    if isinstance(file_system, LocalFileSystem):
        return LocalStorage(Path(path))
    protocols = file_system.protocol
    on_s3 = "s3" in ((protocols,) if isinstance(protocols, str) else protocols)
    return (S3Storage if on_s3 else ObjectStorage)(str(url), file_system, path)
