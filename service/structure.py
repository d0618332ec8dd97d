"""How much structure a body holds, counted before it is parsed.

What a parser makes of a byte differs by two orders of magnitude: four megabytes of `[],` become a million
lists, and a second in which the event loop answers nobody. No valid body holds more than the limits below, so
such a body is refused at the price of three counts.
"""

from __future__ import annotations

from service.errors import InvalidFieldsError
from service.schemas import MAX_CHANGED, MAX_REQUESTS

MAX_BEHAVIOURS = 64_000
"""Of all sequences in one body; 256 requests with 250 behaviours each."""

LIMITS = {
    b"[": ("lists", 2 * MAX_CHANGED + MAX_REQUESTS),
    b"{": ("objects", MAX_BEHAVIOURS + 2 * MAX_REQUESTS),
    b":": ("fields", 2 * MAX_BEHAVIOURS + 8 * MAX_REQUESTS),
}
"""Two lists an item that is added, or a request; two fields a behaviour."""

_SMALL_BYTES = 8192


def check_structure(body: bytes) -> None:
    """Raises InvalidFieldsError when there is more of something than any valid body holds."""
    if len(body) <= _SMALL_BYTES:
        return
    if not any(body.count(sign) > limit for sign, (_, limit) in LIMITS.items()):
        return
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # every quote left begins or ends a string
    outside = b"".join(unescaped.split(b'"')[::2])
    for sign, (name, limit) in LIMITS.items():
        found = outside.count(sign)
        if found > limit:
            raise InvalidFieldsError(
                f"body: holds {found} {name}, at most {limit} are taken; send less at once"
            )
