"""API keys: what one looks like, what is kept of it, and the file that they are kept in.

A key is `t2diff_` + 12 hexadecimal digits that name it + `_` + 256 random bits. The name is no secret: it
finds the entry, is shown by `keys list` and revokes. Kept is the SHA-256 of the whole key. A slow hash would
protect what people choose; 256 random bits cannot be tried out, and the hash is taken on every request.

The file holds a line of JSON that says what it is, then one line a key. No message here repeats anything that
the file holds: somebody may have put a key there.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

Scope = Literal["recall", "events", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = ("recall", "events", "admin", "metrics")
MAX_KEYS = 1000
MAX_RATE = 1_000_000.0
_PREFIX = "t2diff_"
_ID_BYTES, _SECRET_BYTES = 6, 32
_ID = slice(len(_PREFIX), len(_PREFIX) + 2 * _ID_BYTES)
KEY_LENGTH = _ID.stop + 1 + 43
"""43 characters carry 256 bits in base64 without padding."""
_HEADER = {"t2diff_api_keys": 1}


class ApiKeysError(ValueError):
    """The keys cannot be used or changed as asked; the message is one line for people."""


class ApiKey(BaseModel):
    """What is kept of a key.

    rate: requests/s of its caller, None without a limit   burst: requests at once, None one second's worth
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    key_id: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * _ID_BYTES}}}$")]
    caller: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    rate: Annotated[float | None, Field(gt=0, le=MAX_RATE, allow_inf_nan=False)] = None
    burst: Annotated[int | None, Field(ge=1, le=int(MAX_RATE))] = None
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def expired(self, now: datetime) -> bool:
        """Whether it is over at `now`."""
        return self.expires is not None and self.expires <= now

    @property
    def effective_burst(self) -> float:
        """Requests that may come at once."""
        return float(self.burst) if self.burst is not None else max(1.0, self.rate or 1.0)


def new_key(
    caller: str,
    scopes: Sequence[str],
    *,
    rate: float | None = None,
    burst: int | None = None,
    expires: datetime | None = None,
) -> tuple[str, ApiKey]:
    """A fresh key, to be shown once, and what is kept of it. Raises ApiKeysError."""
    key_id = secrets.token_hex(_ID_BYTES)
    key = f"{_PREFIX}{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    entry = {
        "key_id": key_id,
        "caller": caller,
        "sha256": sha256(key.encode()).hexdigest(),
        "scopes": tuple(scopes),
        "rate": rate,
        "burst": burst,
        "created": datetime.now(UTC).replace(microsecond=0),
        "expires": expires,
    }
    try:
        return key, ApiKey.model_validate(entry)
    except ValidationError as error:
        raise ApiKeysError(_told(error)) from None


def key_id_of(text: str) -> str:
    """The id that names a key, given that or the key itself."""
    return text[_ID] if len(text) == KEY_LENGTH and text.startswith(_PREFIX) else text


def encode_keys(keys: Iterable[ApiKey]) -> bytes:
    """The file's bytes."""
    lines = [orjson.dumps(_HEADER), *(key.model_dump_json(exclude_none=True).encode() for key in keys)]
    return b"\n".join(lines) + b"\n"


def decode_keys(data: bytes) -> tuple[ApiKey, ...]:
    """The keys of a file's bytes, in its order. Raises ApiKeysError naming the line.

    A file without its first line is refused: one that an editor is just writing must not lock everybody out.
    """
    lines = data.splitlines()
    if not lines or _json(lines[0]) != _HEADER:
        raise ApiKeysError("its first line is not that of a file of keys; t2diff-serve keys new writes one")
    if len(lines) > MAX_KEYS + 1:
        raise ApiKeysError(f"it holds more than {MAX_KEYS} keys; revoke those that are not used")
    keys = []
    seen: set[str] = set()
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            key = ApiKey.model_validate_json(line)
        except ValidationError as error:
            raise ApiKeysError(f"line {number}: {_told(error)}") from None
        if key.key_id in seen:
            raise ApiKeysError(f"line {number}: there are two keys of this key_id; remove one")
        seen.add(key.key_id)
        keys.append(key)
    return tuple(keys)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key as a request finds it.   expires: Unix seconds, infinity for never"""

    digest: bytes
    caller: str
    scopes: frozenset[str]
    expires: float


_NOBODY = KnownKey(secrets.token_bytes(32), "", frozenset(), 0.0)


class KeyRing:
    """Whose key is it? Built once a file, asked once a request."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._known = {
            key.key_id.encode(): KnownKey(
                digest=bytes.fromhex(key.sha256),
                caller=key.caller,
                scopes=frozenset(key.scopes),
                expires=float("inf") if key.expires is None else key.expires.timestamp(),
            )
            for key in keys
        }

    def find(self, given: bytes) -> KnownKey | None:
        """The key whose hash is that of `given`.

        The time says nothing: an unknown name costs a hash and a whole comparison as well. No answer is kept
        from one request to the next, for that would keep the key, and the hash costs a microsecond.
        """
        if len(given) != KEY_LENGTH:
            return None
        known = self._known.get(given[_ID], _NOBODY)
        if not hmac.compare_digest(sha256(given).digest(), known.digest) or known is _NOBODY:
            return None
        return known


def _json(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


_REMEDIES = {
    "caller": "must consist of 1 to 64 letters, digits, '.', '_' and '-'",
    "sha256": "must be 64 hexadecimal digits",
    "key_id": f"must be {2 * _ID_BYTES} hexadecimal digits",
    "scopes": f"must be a list of {', '.join(SCOPES)}",
    "rate": f"must be requests a second, above 0 and at most {MAX_RATE:g}",
    "burst": f"must be a whole number, 1 to {MAX_RATE:g}",
    "created": "must be a date and time with its zone",
    "expires": "must be a date and time with its zone",
}


def _told(error: ValidationError) -> str:
    """What is wrong, without the value."""
    entry = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(entry["loc"][0]) if entry["loc"] else ""
    if name not in _REMEDIES:
        return "it is not JSON of a key with only the known fields" if not name else "has an unknown field"
    return f"{name}: {'is required' if entry['type'] == 'missing' else _REMEDIES[name]}"
