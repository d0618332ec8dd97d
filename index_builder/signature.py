"""The optional signature of a bundle: who wrote it, beside the checksums that say that it is whole.

`manifest.sig` holds the HMAC-SHA256 of the manifest, and the manifest the SHA-256 of every other file. A key
is a line of a text file, so that two can be in use while one replaces the other: the first signs, any of them
is accepted. HMAC and no public key, for it takes nothing but the standard library; so whoever reads the key
file of a service can sign, too. The pointer and the delta of a store are not signed: see SECURITY.md.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

SIGNATURE = "manifest.sig"
MIN_KEY_LENGTH = 32
_PURPOSE = b"t2diff bundle manifest, version 1\n"
_ALGORITHM = b"hmac-sha256 "
MAX_SIGNATURE_BYTES = 1024


class SignatureKeyError(ValueError):
    """A key file that cannot be used; the message never repeats what is in it."""


def read_keys(path: Path | None) -> tuple[bytes, ...]:
    """The keys of a file, one a line; none for no file. Raises SignatureKeyError."""
    if path is None:
        return ()
    try:
        keys = tuple(line.strip() for line in path.read_bytes().splitlines() if line.strip())
    except OSError as error:
        raise SignatureKeyError(f"signature_key: cannot read {path}: {error.strerror}") from None
    if not keys or any(len(key) < MIN_KEY_LENGTH for key in keys):
        raise SignatureKeyError(
            f"signature_key: {path} must hold a key of at least {MIN_KEY_LENGTH} characters in each line: "
            "openssl rand -hex 32 writes one"
        )
    return keys


def sign(manifest: bytes, key: bytes) -> bytes:
    """The content of `manifest.sig`."""
    return _ALGORITHM + hmac.new(key, _PURPOSE + manifest, hashlib.sha256).hexdigest().encode() + b"\n"


def is_signed(manifest: bytes, signature: bytes, keys: Sequence[bytes]) -> bool:
    """Whether the signature is that of one of the keys; takes the same time wherever it differs."""
    return any([hmac.compare_digest(sign(manifest, key), signature) for key in keys])
