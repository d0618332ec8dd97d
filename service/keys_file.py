"""The file of API keys on disk: read whole, replaced whole, one writer at a time, nobody else's to read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from service.api_keys import ApiKey, ApiKeysError, decode_keys, encode_keys

_MODE = 0o600
_MAX_BYTES = 1024 * 1024


def read_keys_file(path: Path) -> bytes:
    """The file's bytes. Raises ApiKeysError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ApiKeysError(f"cannot be read: {error.strerror or error}") from None
    if len(data) > _MAX_BYTES:
        raise ApiKeysError(f"is larger than {_MAX_BYTES} bytes: is it a file of keys?")
    return data


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises ApiKeysError naming it."""
    try:
        return decode_keys(read_keys_file(path))
    except ApiKeysError as error:
        raise ApiKeysError(f"{path}: {error}") from None


def change_keys(
    path: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]], *, create: bool = False
) -> None:
    """Replace the file by its keys changed; readers see the old one or the new one.

    create: begin one where there is none.   Raises ApiKeysError.
    """
    target = path.resolve()  # a link stays one
    try:
        with _alone(target.parent):
            there = target.exists()
            if not there and not create:
                raise ApiKeysError(f"{path}: there is no such file; t2diff-serve keys new makes one")
            _replace(target, encode_keys(change(read_keys(target) if there else ())))
    except OSError as error:
        raise ApiKeysError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer in this folder at a time."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
        os.fsync(opened)  # the new name, too, outlives a crash
    finally:
        os.close(opened)


def _replace(target: Path, data: bytes) -> None:
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    opened = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        with open(opened, "wb") as file:
            if target.exists():  # made by another user, perhaps the service's: it stays theirs
                with contextlib.suppress(PermissionError):
                    os.fchown(opened, target.stat().st_uid, target.stat().st_gid)
            file.write(data)
            file.flush()
            os.fsync(opened)
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
