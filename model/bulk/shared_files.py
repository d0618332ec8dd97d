"""Files that every node must see as the machine does that gives the work: shared storage, one path."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from model.bulk.surroundings import BulkError


def check_file(path: Path, size_bytes: int) -> None:
    """Raise BulkError unless this node has the file at `path`, of that size."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise BulkError(_missing(path)) from error
    if found != size_bytes:
        raise BulkError(
            f"--ray: node {socket.gethostname()} has another {path} ({found:,} bytes, {size_bytes:,} where "
            "the job was started): give every node the same shared storage"
        )


def folder_digest(folder: Path) -> str:
    """SHA-256 over a checkpoint's manifest and the names and sizes of its files."""
    digest = hashlib.sha256((folder / "manifest.json").read_bytes())
    for path in sorted(folder.iterdir()):
        digest.update(f"\x00{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()


def check_folder(folder: Path, digest: str) -> None:
    """Raise BulkError unless this node has the checkpoint at `folder`."""
    if not (folder / "manifest.json").is_file():
        raise BulkError(_missing(folder))
    if folder_digest(folder) != digest:
        raise BulkError(
            f"--ray: node {socket.gethostname()} has another checkpoint at {folder} than the machine where "
            "the job was started: give every node the same shared storage"
        )


def _missing(path: Path) -> str:
    return (
        f"--ray: node {socket.gethostname()} has no {path}: every node needs shared storage (NFS or "
        "the like) mounted at the same path"
    )
