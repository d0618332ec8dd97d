"""Every way in which a request can fail, and its one form on the wire: problem+json (RFC 9457).

An error names the field, the value (shortened, never the whole input: echoing a NaN back is how a
bad request becomes a 500) and the remedy. The core raises these classes; the HTTP layer renders them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from math import ceil
from typing import Any, ClassVar

import orjson
from pydantic import ValidationError

CONTENT_TYPE = "application/problem+json"
_MAX_SHOWN = 60
_MAX_ERRORS = 10
_MAX_COUNTED = 100
"""More are not looked at one by one: each costs microseconds, and a body may hold a hundred thousand."""


class ServiceError(Exception):
    """An expected failure of one request. `kind` is a stable name that callers may switch on.

    bundle: the one that was to answer, once that is known
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors or []
        self.headers = dict(headers or {})
        self.bundle: str | None = None

    def problem(self, request_id: str | None = None) -> dict[str, Any]:
        """The problem document."""
        return problem(
            self.status,
            kind=self.kind,
            detail=self.detail,
            errors=self.errors,
            request_id=request_id,
            bundle=self.bundle,
        )


class InvalidBodyError(ServiceError):
    """The body is not JSON."""

    status, kind = 400, "invalid-json"


class InvalidHeaderError(ServiceError):
    """A header that we read is malformed."""

    status, kind = 400, "invalid-header"


class UnauthorizedError(ServiceError):
    """No key, or none that opens anything (RFC 6750)."""

    status, kind = 401, "unauthorized"

    def __init__(self, detail: str, *, error: str = "") -> None:
        reason = f', error="{error}"' if error else ""
        challenge = f'Bearer realm="t2diff"{reason}'
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class ForbiddenError(ServiceError):
    """The key is known and opens something else."""

    status, kind = 403, "forbidden"

    def __init__(self, scopes: Iterable[str]) -> None:
        needed = sorted(scopes)
        challenge = f'Bearer realm="t2diff", error="insufficient_scope", scope="{" ".join(needed)}"'
        super().__init__(
            f"this key lacks the scope {' or '.join(needed)}; use one that has it",
            headers={"WWW-Authenticate": challenge},
        )


class ReceiveTimeoutError(ServiceError):
    """The body did not arrive in time."""

    status, kind = 408, "receive-timeout"


class BodyTooLargeError(ServiceError):
    """The body is over the limit; it was not read."""

    status, kind = 413, "body-too-large"


class TooManyBodiesError(ServiceError):
    """Bodies that are still arriving hold as much as they may; this one was not read to its end."""

    status, kind = 429, "too-many-bodies"


class UnsupportedMediaTypeError(ServiceError):
    """The body is not declared as JSON."""

    status, kind = 415, "unsupported-media-type"


class InvalidFieldsError(ServiceError):
    """The body is JSON of the wrong shape."""

    status, kind = 422, "invalid-fields"


class BundleRefusedError(ServiceError):
    """What the bundle store holds is not fit to be served; what was served before still is."""

    status, kind = 409, "bundle-refused"


class BundleStoreError(ServiceError):
    """The bundle store cannot be changed as asked."""

    status, kind = 409, "bundle-store"


class BundleStoreUnavailableError(ServiceError):
    """The bundle store cannot be reached or written."""

    status, kind = 503, "bundle-store-unavailable"


class QueueFullError(ServiceError):
    """More requests wait for the device than the queue holds."""

    status, kind = 429, "queue-full"

    def __init__(self, max_queue: int) -> None:
        super().__init__(
            f"{max_queue} requests already wait for the device; retry later or send fewer at once",
            headers={"Retry-After": "1"},
        )


class OverRateError(ServiceError):
    """The caller asks more often than its keys allow."""

    status, kind = 429, "over-rate"

    def __init__(self, rate: float, *, wait_s: float) -> None:
        super().__init__(
            f"this caller may send {rate:g} requests a second and has sent more; spread them",
            headers={"Retry-After": str(max(1, ceil(wait_s)))},
        )


class OverShareError(ServiceError):
    """The caller has as many requests under way as its share of the places."""

    status, kind = 429, "over-share"

    def __init__(self, held: int) -> None:
        super().__init__(
            f"this caller has {held} requests under way, all that its share allows now; wait for answers",
            headers={"Retry-After": "1"},
        )


class EngineFailedError(ServiceError):
    """The batch that held this request raised. `reason` says which part of the engine, in the answer too."""

    status, kind = 500, "engine-failed"

    def __init__(self, detail: str, *, reason: str = "model") -> None:
        super().__init__(detail)
        self.reason = reason


class NoBundleError(ServiceError):
    """Nothing is loaded that could answer."""

    status, kind = 503, "no-bundle"


class ShuttingDownError(ServiceError):
    """The process is about to end."""

    status, kind = 503, "shutting-down"


class StoreUnavailableError(ServiceError):
    """Redis did not answer in time, or not with what was asked for. `reason` is a metric label."""

    status, kind = 503, "store-unavailable"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})
        self.reason = reason


class DeadlineExceededError(ServiceError):
    """The time that the caller gave is over."""

    status, kind = 504, "deadline-exceeded"


def problem(
    status: int,
    *,
    kind: str,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    request_id: str | None = None,
    bundle: str | None = None,
) -> dict[str, Any]:
    """The document of `schemas.Problem`, ready to be serialised."""
    document: dict[str, Any] = {
        "type": f"urn:t2diff:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        document["errors"] = errors
    if request_id is not None:
        document["request_id"] = request_id
    if bundle is not None:
        document["bundle"] = bundle
    return document


def render(document: Mapping[str, Any]) -> bytes:
    """Serialise; text that UTF-8 cannot carry was escaped by `shorten` already."""
    return orjson.dumps(document)


def invalid_input(error: ValidationError) -> ServiceError:
    """What pydantic found, as 400 (not JSON) or 422 (JSON of the wrong shape)."""
    if error.error_count() > _MAX_COUNTED:
        return InvalidFieldsError(
            f"body: {error.error_count()} fields are wrong; send one request alone to see which"
        )
    found = error.errors(include_url=False, include_context=False)
    if found[0]["type"] == "json_invalid":
        return InvalidBodyError(
            f"the body is not valid JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}"
        )
    errors = [_field_problem(entry) for entry in found[:_MAX_ERRORS]]
    first = errors[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    detail = f"{first['field']}: {first['problem']}, got {first['value']}; {first['remedy']}{more}"
    return InvalidFieldsError(detail, errors=errors)


def shorten(value: object) -> str:
    """A bounded, printable picture of what was sent."""
    if isinstance(value, (list, tuple, dict)):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}"
    if isinstance(value, str | bytes):
        text = ascii(value[: _MAX_SHOWN + 1])
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int) and value.bit_length() > 4 * _MAX_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    else:
        text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


_PROBLEMS = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
}
_REMEDIES = {
    "missing": "add it",
    "extra_forbidden": "remove it",
    "int_type": "send an integer",
    "bool_type": "send true or false",
    "model_type": "send a JSON object",
    "list_type": "send a JSON list",
    "identifier": "send an identifier as the catalogue has it",
}


def _field_problem(entry: Any) -> dict[str, str]:
    location = ".".join(str(part)[:_MAX_SHOWN] for part in entry["loc"]) or "body"
    problem_text = _PROBLEMS.get(entry["type"]) or entry["msg"].removeprefix("Value error, ")
    problem_text = problem_text.replace("Input should ", "must ", 1)
    return {
        "field": location.encode("ascii", "backslashreplace").decode(),
        "value": "nothing" if entry["type"] == "missing" else shorten(entry["input"]),
        "problem": problem_text[0].lower() + problem_text[1:],
        "remedy": _REMEDIES.get(entry["type"], "send a value within these bounds"),
    }
