"""The public routes and their OpenAPI document, both from one table.

Routes take raw bytes and validate them once, so FastAPI cannot infer the document; and its routing
would cost a third of a request's time for inference that is not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service.deadline import MAX_DEADLINE_MS
from service.errors import CONTENT_TYPE
from service.schemas import (
    EventsAnswer,
    EventsRequest,
    Health,
    ModelInfo,
    Problem,
    RecallAnswer,
    RecallBatchAnswer,
    RecallBatchRequest,
    RecallRequest,
)


class Operation(NamedTuple):
    """One route: its place, what it takes, what it answers, and which errors beyond 500 it knows."""

    method: str
    path: str
    body: type[BaseModel] | None
    answer: type[BaseModel]
    errors: tuple[int, ...]
    example: Any = None


_OF_BODY = (400, 408, 413, 415, 422, 429)
OPERATIONS = {
    "recall": Operation(
        "POST",
        "/recall",
        RecallRequest,
        RecallAnswer,
        (*_OF_BODY, 503, 504),
        {"user_id": "u42", "top_k": 10},
    ),
    "recall_batch": Operation(
        "POST",
        "/recall/batch",
        RecallBatchRequest,
        RecallBatchAnswer,
        (*_OF_BODY, 503),
        {"requests": [{"user_id": "u42"}, {"user_id": "u43", "top_k": 5}]},
    ),
    "events": Operation(
        "POST",
        "/events",
        EventsRequest,
        EventsAnswer,
        (*_OF_BODY, 503, 504),
        {"user_id": "u42", "item_id": "12", "timestamp": 1700000000},
    ),
    "live": Operation("GET", "/v2/health/live", None, Health, (503,)),
    "ready": Operation("GET", "/v2/health/ready", None, Health, (503,)),
    "model": Operation("GET", "/v2/models/recall", None, ModelInfo, (503,)),
}
_ERRORS = {
    400: "The body is not JSON, or a header is malformed.",
    401: "The key is missing, unknown or over.",
    403: "The key does not open this; see WWW-Authenticate.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A field is missing, unknown, of the wrong type or out of bounds.",
    429: "Too many requests wait for the device or come from this caller, or too many bodies arrive.",
    500: "The service met an error of its own.",
    503: "Nothing can answer now: no bundle, Redis away (events), or shutting down.",
    504: "The deadline passed.",
}


_OF_KEYS = (401, 403, 429)
_KEY_SCHEME = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, made by `t2diff-serve keys new`."}
}


def openapi_document(
    info: dict[str, Any],
    descriptions: dict[str, str],
    scopes: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """The document of OPERATIONS.

    descriptions: operation name -> text   scopes: path -> what a key must have there, None without keys
    """
    models: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Problem, "serialization"): None}
    paths: dict[str, Any] = {}
    for name, operation in OPERATIONS.items():
        if operation.body is not None:
            models[operation.body, "validation"] = None
        models[operation.answer, "serialization"] = None
        needed = None if scopes is None else scopes.get(operation.path)
        if needed is not None:
            operation = operation._replace(errors=tuple(dict.fromkeys((*operation.errors, *_OF_KEYS))))
        described = _describe(name, operation, descriptions[name])
        if needed is not None:
            described["security"] = [{"key": sorted(needed)}]
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    _, schemas = models_json_schema(list(models), ref_template="#/components/schemas/{model}")
    components = {"schemas": schemas["$defs"], **({} if scopes is None else {"securitySchemes": _KEY_SCHEME})}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _describe(name: str, operation: Operation, description: str) -> dict[str, Any]:
    timing = {"Server-Timing": {"description": "Stages, in ms.", "schema": {"type": "string"}}}
    ok = {"description": operation.answer.__doc__, "headers": timing, **_content(operation.answer)}
    errors = {
        str(status): {"description": _ERRORS[status], **_content(Problem, CONTENT_TYPE)}
        for status in (*operation.errors, 500)
    }
    request_id = _header("X-Request-ID", "Echoed in the answer.", {"type": "string"})
    described: dict[str, Any] = {
        "operationId": name,
        "summary": description.strip().split("\n", 1)[0],
        "description": description,
        "parameters": [request_id],
        "responses": {"200": ok, **errors},
    }
    if operation.body is not None:
        milliseconds = {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS}
        described["parameters"].append(_header("X-Deadline-Ms", "Time the request may take.", milliseconds))
        described["requestBody"] = {"required": True, **_content(operation.body)}
        described["requestBody"]["content"]["application/json"]["example"] = operation.example
    return described


def _content(model: type[BaseModel], media_type: str = "application/json") -> dict[str, Any]:
    return {"content": {media_type: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}}


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
