"""`CURRENT`: one small file that says which bundle is served, and which ones were before it.

Its first line is the served bundle; the lines below are those published earlier, latest first. One
atomic replacement thus moves the pointer and its history together, and no kill can part them.
"""

from __future__ import annotations

from collections.abc import Sequence

from index_builder.bundle_files import BUNDLE_ID, BundleError
from index_builder.storage import Storage

POINTER = "CURRENT"
_MAX_HISTORY = 200


def read_pointer(storage: Storage) -> list[str]:
    """The bundles published, the served one first; empty when nothing was published yet.

    Raises BundleError when the file cannot be read or holds anything but bundle ids.
    """
    try:
        data = storage.read(POINTER)
    except OSError as error:
        raise BundleError(f"cannot read {POINTER} of store {storage.url}: {error}") from error
    if data is None:
        return []
    lines = data.decode("ascii", "replace").splitlines()
    if not lines or not all(BUNDLE_ID.fullmatch(line) for line in lines):
        raise BundleError(f"{POINTER} of store {storage.url} is damaged: publish a bundle to write it again")
    return lines


def write_pointer(storage: Storage, bundle_ids: Sequence[str]) -> None:
    """Serve `bundle_ids[0]` from now on, the others being its history."""
    storage.replace(POINTER, "".join(f"{name}\n" for name in bundle_ids[:_MAX_HISTORY]).encode("ascii"))
