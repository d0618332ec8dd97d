"""The HTTP faces of the service: recall for callers, and metrics and admin on a port of their own.

A route reads raw bytes, lets pydantic check them, and answers with orjson; nothing is validated twice.
The OpenAPI document is therefore written from the schemas by `openapi.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.body import deadline_of, parse, read_body
from service.deadline import Deadline
from service.errors import CONTENT_TYPE, ServiceError, invalid_input, problem, render
from service.errors import shorten as shortened
from service.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from service.middleware import SCOPE_KEY, Application, RequestContext, RequestMiddleware
from service.openapi import complete, operation
from service.recall import Recalled, RecallService
from service.schemas import (
    EVENT,
    EVENTS,
    RECALL_BATCH_REQUEST,
    RECALL_REQUEST,
    RecallRequest,
    Refused,
)

PUBLIC_ROUTES = {
    "/recall": "recall",
    "/recall/batch": "recall_batch",
    "/events": "events",
    "/v2/health/live": "health",
    "/v2/health/ready": "health",
    "/v2/models/recall": "model",
    "/docs": "docs",
    "/openapi.json": "docs",
}
ADMIN_ROUTES = {"/metrics": "metrics", "/admin/reload": "admin"}


def create_app(service: RecallService) -> Application:
    """What callers see."""
    app = FastAPI(
        title="T2Diff recall",
        summary="The recall stage: a user's next candidates out of the whole catalogue.",
        redoc_url=None,
    )
    _add_error_handlers(app)
    settings = service.settings

    async def body_of(request: Request) -> bytes:
        return await read_body(
            _context(request),
            request.receive,
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.receive_timeout_s,
        )

    @app.post("/recall", **operation("recall"))
    async def recall(request: Request) -> Response:
        """Candidates for one user."""
        context = _context(request)
        deadline = deadline_of(context, settings.deadline_ms)
        recalled = await service.recall(parse(RECALL_REQUEST, await body_of(request)), deadline)
        context.timings = recalled.timings
        context.batch_size = recalled.batch_size
        context.bundle = recalled.bundle
        return _json(recalled.document(context.request_id))

    @app.post("/recall/batch", **operation("recall_batch"))
    async def recall_batch(request: Request) -> Response:
        """Candidates for up to 256 users, each answered or refused on its own."""
        context = _context(request)
        deadline = deadline_of(context, settings.deadline_ms)
        batch = parse(RECALL_BATCH_REQUEST, await body_of(request))
        service.check_ready()
        members = [_member(service, context, asked, deadline) for asked in batch.requests]
        return _json({"request_id": context.request_id, "responses": await asyncio.gather(*members)})

    @app.post("/events", **operation("events"))
    async def events(request: Request) -> Response:
        """Append one behaviour, or a list of them, to users' sequences.

        At least once: repeat the call when it fails; the same item at the same time is kept once.
        """
        context = _context(request)
        deadline = deadline_of(context, settings.deadline_ms)
        body = await body_of(request)
        listed = body.lstrip()[:1] == b"["
        appended = parse(EVENTS, body) if listed else [parse(EVENT, body)]
        accepted = await service.append(appended, deadline)
        return _json({"request_id": context.request_id, "accepted": accepted})

    @app.get("/v2/health/live", **operation("live"))
    async def live(request: Request) -> Response:
        """Whether the process is worth keeping: fails when the device thread hangs."""
        if service.wedged:
            return _problem(request, 503, "wedged", "the device thread has been in one batch for too long")
        return _json({"status": "ok"})

    @app.get("/v2/health/ready", **operation("ready"))
    async def ready(request: Request) -> Response:
        """Whether requests are welcome; an outage of Redis does not change it."""
        service.check_ready()
        return _json({"status": "ok"})

    @app.get("/v2/models/recall", **operation("model"))
    async def model(request: Request) -> Response:
        """The bundle that is being served."""
        return _json(_model_info(service))

    _describe(app)
    return RequestMiddleware(
        app, metrics=service.metrics, routes=PUBLIC_ROUTES, log_requests=settings.log_requests
    )


def create_admin_app(service: RecallService, reload: Callable[[], Awaitable[dict[str, Any]]]) -> Application:
    """Metrics and admin calls. reload: look at the store now; what became of it."""
    app = FastAPI(title="T2Diff recall, metrics and admin", redoc_url=None)
    _add_error_handlers(app)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.exposition(), media_type=METRICS_CONTENT_TYPE)

    @app.post("/admin/reload")
    async def admin_reload(request: Request) -> Response:
        """Load the store's current bundle now; a bad one is refused and the old one keeps serving."""
        outcome = await reload()
        if outcome["outcome"] == "refused":
            return _problem(request, 409, "bundle-refused", outcome["reason"])
        return _json(outcome)

    return RequestMiddleware(
        app, metrics=service.metrics, routes=ADMIN_ROUTES, log_requests=service.settings.log_requests
    )


async def _member(
    service: RecallService, context: RequestContext, asked: RecallRequest | Refused, deadline: Deadline
) -> dict[str, Any]:
    try:
        if isinstance(asked, Refused):
            raise invalid_input(asked.error)
        recalled: Recalled = await service.recall(asked, deadline)
    except ServiceError as error:
        return {"status": error.status, "problem": error.problem()}
    return {"status": 200, "answer": recalled.document(context.request_id)}


def _model_info(service: RecallService) -> dict[str, Any]:
    engine = service.engine
    manifest = engine.bundle.manifest
    return {
        "bundle": engine.bundle.bundle_id,
        "model": engine.bundle.model_name,
        "model_settings": manifest["model"]["config"],
        "metric": engine.bundle.model.metric,
        "device": engine.device,
        "index": manifest["index"],
        "num_items": len(engine.bundle.item_ids),
        "metrics": manifest["offline_metrics"],
    }


def _add_error_handlers(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return Response(
            render(error.problem(_context(request).request_id)),
            status_code=error.status,
            media_type=CONTENT_TYPE,
            headers=error.headers,
        )

    async def routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = shortened(request.url.path)
        if error.status_code == 404:
            return _problem(request, 404, "not-found", f"there is no resource at {path}; see /docs")
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            detail = f"{path} does not take {shortened(request.method)}; use {allowed}"
            return _problem(request, 405, "method-not-allowed", detail, headers=error.headers)
        return _problem(request, error.status_code, "http", str(error.detail), headers=error.headers)

    async def unexpected(request: Request, error: Exception) -> Response:
        detail = "the service met an error of its own; report the request id"
        return _problem(request, 500, "internal", detail)

    app.add_exception_handler(ServiceError, known)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)


def _describe(app: FastAPI) -> None:
    document = complete(app.openapi())  # kept by the app, and served at /openapi.json
    assert app.openapi_schema is document


def _context(request: Request) -> RequestContext:
    context: RequestContext = request.scope[SCOPE_KEY]
    return context


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _problem(request: Request, status: int, kind: str, detail: str, *, headers: Any = None) -> Response:
    document = problem(status, kind=kind, detail=detail, request_id=_context(request).request_id)
    return Response(render(document), status_code=status, media_type=CONTENT_TYPE, headers=headers)
