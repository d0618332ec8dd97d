"""The OpenAPI document's parts, from the schemas: routes take raw bytes, so FastAPI cannot infer them."""

from __future__ import annotations

from typing import Any

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

_MODELS: list[tuple[type[BaseModel], JsonSchemaMode]] = [
    (RecallRequest, "validation"),
    (RecallBatchRequest, "validation"),
    (EventsRequest, "validation"),
    (RecallAnswer, "serialization"),
    (RecallBatchAnswer, "serialization"),
    (EventsAnswer, "serialization"),
    (Health, "serialization"),
    (ModelInfo, "serialization"),
    (Problem, "serialization"),
]
_ERRORS = {
    400: "The body is not JSON, or a header is malformed.",
    404: "There is no such resource.",
    405: "The resource does not take this method.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "A field is missing, unknown, of the wrong type or out of bounds.",
    429: "Too many requests wait for the device; see Retry-After.",
    500: "The service met an error of its own.",
    503: "Nothing can answer now: no bundle, Redis away (events), or shutting down.",
    504: "The deadline passed.",
}
_OF_BODY = (400, 408, 413, 415, 422)
_OPERATIONS: dict[str, tuple[type[BaseModel] | None, type[BaseModel], tuple[int, ...]]] = {
    "recall": (RecallRequest, RecallAnswer, (*_OF_BODY, 429, 500, 503, 504)),
    "recall_batch": (RecallBatchRequest, RecallBatchAnswer, (*_OF_BODY, 500, 503)),
    "events": (EventsRequest, EventsAnswer, (*_OF_BODY, 500, 503, 504)),
    "live": (None, Health, (500, 503)),
    "ready": (None, Health, (500, 503)),
    "model": (None, ModelInfo, (500, 503)),
}
_EXAMPLES: dict[str, Any] = {
    "recall": {"user_id": "u42", "top_k": 10},
    "recall_batch": {"requests": [{"user_id": "u42"}, {"user_id": "u43", "top_k": 5}]},
    "events": {"user_id": "u42", "item_id": "12", "timestamp": 1700000000},
}


def operation(name: str) -> dict[str, Any]:
    """What FastAPI's route decorators take to describe operation `name`."""
    body, answer, errors = _OPERATIONS[name]
    responses: dict[int, dict[str, Any]] = {
        200: {"description": answer.__doc__, "content": {"application/json": {"schema": _reference(answer)}}}
    }
    for status in errors:
        content = {CONTENT_TYPE: {"schema": _reference(Problem)}}
        responses[status] = {"description": _ERRORS[status], "content": content}
    extra: dict[str, Any] = {
        "parameters": [_header("X-Request-ID", "Echoed in the answer.", {"type": "string"})]
    }
    if body is not None:
        content = {"application/json": {"schema": _reference(body), "example": _EXAMPLES[name]}}
        extra["requestBody"] = {"required": True, "content": content}
        milliseconds = {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS}
        extra["parameters"].append(_header("X-Deadline-Ms", "Time the request may take.", milliseconds))
    return {"responses": responses, "openapi_extra": extra, "operation_id": name}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add the schemas that the operations refer to."""
    _, definitions = models_json_schema(_MODELS, ref_template="#/components/schemas/{model}")
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    for path in document["paths"].values():
        for described in path.values():
            described["responses"][200 if 200 in described["responses"] else "200"].setdefault(
                "headers", {"Server-Timing": {"description": "Stages in ms.", "schema": {"type": "string"}}}
            )
    return document


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}
