"""The HTTP faces of the service: recall for callers, and metrics and admin on a port of their own.

A route reads raw bytes, lets pydantic check them, and answers with orjson; nothing is validated twice.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.access import ADMIN, ANY_KEY, OPEN, PUBLIC_NEEDS, admin_needs, guarded
from service.admin import ADMIN_PATHS, AdminAnswer, admin_operations
from service.body import BODIES_AT_ONCE, BodyBudget, deadline_of, parse_for, read_body
from service.callers import Callers, Turn
from service.console.routes import CONSOLE_PATHS, PAGE_HEADERS, STATIC, console_file, console_operations
from service.deadline import Deadline
from service.errors import CONTENT_TYPE, ServiceError, invalid_input, problem, render
from service.errors import shorten as shortened
from service.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from service.middleware import (
    ARM_HEADER,
    SCOPE_KEY,
    Application,
    Receive,
    RequestContext,
    RequestMiddleware,
    Scope,
    Send,
)
from service.openapi import OPERATIONS, openapi_document
from service.recall import RecallService
from service.recalled import Recalled
from service.schemas import EVENT, EVENTS, RECALL_BATCH_REQUEST, RECALL_REQUEST, RecallRequest, Refused
from service.trace import BeginTrace

Handler = Callable[[Request], Awaitable[Response]]
TITLE = "T2Diff recall"
_JSON = "application/json"
PUBLIC_LABELS = {
    "/recall": "recall",
    "/recall/batch": "recall_batch",
    "/events": "events",
    "/v2/health/live": "health",
    "/v2/health/ready": "health",
    "/v2/models/recall": "model",
    "/docs": "docs",
    "/openapi.json": "docs",
}
ADMIN_LABELS = {
    "/metrics": "metrics",
    **dict.fromkeys(ADMIN_PATHS, "admin"),
    **dict.fromkeys((*STATIC, *CONSOLE_PATHS), "console"),
}


def create_app(
    service: RecallService, callers: Callers | None = None, begin_trace: BeginTrace | None = None
) -> Application:
    """What callers see.   callers: those with a key, None while anybody may ask

    begin_trace: None where nothing is traced
    """
    app = FastAPI(title=TITLE, redoc_url=None, redirect_slashes=False)
    routes = _Routes(service)
    handlers = routes.handlers()
    for name, operation in OPERATIONS.items():
        app.add_route(operation.path, handlers[name], methods=[operation.method])
    document = openapi_document(
        {
            "title": TITLE,
            "version": service_version(),
            "description": "The recall stage: a user's next candidates.",
        },
        {name: inspect.getdoc(handler) or "" for name, handler in handlers.items()},
        None if callers is None else {path: need.scopes for path, need in PUBLIC_NEEDS.items() if need},
    )
    app.openapi = lambda: document  # type: ignore[method-assign]
    _add_error_handlers(app)
    door = guarded(_RecallFirst(app, routes.answer), callers, PUBLIC_NEEDS, otherwise=ANY_KEY)
    return _finished(door, service, PUBLIC_LABELS, begin_trace)


def create_admin_app(
    service: RecallService,
    reload: Callable[[], Awaitable[dict[str, Any]]],
    callers: Callers | None = None,
    *,
    open_metrics: bool = True,
) -> Application:
    """Metrics, admin calls and the console. reload: look at the bundle store now; what became of it.

    callers: as for `create_app`   open_metrics: /metrics takes no key
    """
    app = FastAPI(title=f"{TITLE}: metrics and admin", openapi_url=None, redirect_slashes=False)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.exposition(), media_type=METRICS_CONTENT_TYPE)

    app.add_route("/metrics", metrics, methods=["GET"])
    for method, path, answer in admin_operations(service.settings, reload) + console_operations(service):
        app.add_route(path, _admin_handler(answer), methods=[method])
    for path in STATIC:
        app.add_route(path, _page, methods=["GET"])
    _add_error_handlers(app)
    needs = admin_needs(open_metrics=open_metrics) | dict.fromkeys(STATIC, OPEN)  # the page asks for a key
    door = guarded(app, callers, needs, otherwise=ADMIN)
    return _finished(door, service, ADMIN_LABELS)


def _admin_handler(answer: AdminAnswer) -> Handler:
    async def handler(request: Request) -> Response:
        return _json(await answer(_context(request), request.receive))

    return handler


async def _page(request: Request) -> Response:
    path = request.url.path
    return Response(console_file(path), media_type=STATIC[path][1], headers=PAGE_HEADERS)


class _RecallFirst:
    """POST /recall straight to its handler; everything else, the framework routes.

    Nearly all requests are recalls, and the framework's layers cost more than their whole answer.
    """

    def __init__(
        self, app: Application, answer: Callable[[RequestContext, Receive], Awaitable[bytes]]
    ) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. What is not a ServiceError is left to the middleware around it."""
        if scope["type"] != "http" or scope["path"] != "/recall" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        context: RequestContext = scope[SCOPE_KEY]
        try:
            body = await self._answer(context, receive)
        except ServiceError as error:
            await _refusal(error, context)(scope, receive, send)
            return
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", _JSON.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Routes:
    """The public handlers; the first line of each docstring is what the documentation shows."""

    def __init__(self, service: RecallService) -> None:
        self._service = service
        self._settings = service.settings
        self._budget = BodyBudget(BODIES_AT_ONCE * service.settings.max_body_bytes)

    def handlers(self) -> dict[str, Handler]:
        return {name: getattr(self, name) for name in OPERATIONS}

    async def recall(self, request: Request) -> Response:
        """Candidates for one user.

        While an experiment runs, the header X-Experiment-Arm names an arm in place of the user's own.
        """
        return Response(await self.answer(_context(request), request.receive), media_type=_JSON)

    async def answer(self, context: RequestContext, receive: Receive) -> bytes:
        """The body of POST /recall. Raises ServiceError."""
        deadline = deadline_of(context, self._settings.deadline_ms)
        self._service.in_flight.check()  # before a body is read, and once it is there: that may take long
        body = await self._body(context, receive)
        self._service.in_flight.check()
        asked = parse_for(context, RECALL_REQUEST, body)
        recalled = await self._service.recall(asked, deadline, context.headers.get(ARM_HEADER))
        context.timings = recalled.timings
        context.batch_size = recalled.batch_size
        context.bundle = recalled.bundle
        context.arm = recalled.arm
        if recalled.afterwards is not None:
            context.afterwards += (recalled.afterwards,)
        context.fallback = recalled.fallback
        encoding = time.monotonic()
        answer = orjson.dumps(recalled.document(context.request_id))
        context.stage("encode", encoding)
        return answer

    async def recall_batch(self, request: Request) -> Response:
        """Candidates for up to 256 users, each answered or refused on its own."""
        context = _context(request)
        deadline = deadline_of(context, self._settings.deadline_ms)
        self._service.in_flight.check()
        batch = parse_for(context, RECALL_BATCH_REQUEST, await self._body(context, request.receive))
        turn = nullcontext if context.caller is None else context.caller.begin_batch(len(batch.requests))
        members = [_member(self._service, context, asked, deadline, turn) for asked in batch.requests]
        answers = await asyncio.gather(*members)
        return _json({"request_id": context.request_id, "responses": answers})

    async def events(self, request: Request) -> Response:
        """Append one behaviour, or a list of them, to users' sequences.

        At least once: repeat the call when it fails. The same item at the same time is kept once.
        """
        context = _context(request)
        deadline = deadline_of(context, self._settings.deadline_ms)
        body = await self._body(context, request.receive)
        listed = body.lstrip()[:1] == b"["
        appended = parse_for(context, EVENTS, body) if listed else [parse_for(context, EVENT, body)]
        storing = time.monotonic()
        try:
            accepted = await self._service.append(appended, deadline)
        finally:
            context.stage("store", storing)
        return _json({"request_id": context.request_id, "accepted": accepted})

    async def live(self, request: Request) -> Response:
        """Whether the process is worth keeping: fails when the device thread hangs."""
        if self._service.wedged:
            return _problem(request, 503, "wedged", "the device thread has been in one batch for too long")
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether requests are welcome; an outage of Redis does not change it."""
        self._service.check_ready()
        return _json({"status": "ok"})

    async def model(self, request: Request) -> Response:
        """The bundle that is being served, the control's in an experiment, and the arms."""
        engine = self._service.engine
        arms = self._service.arms
        manifest = engine.bundle.manifest
        return _json(
            {
                "bundle": engine.bundle.bundle_id,
                "model": engine.bundle.model_name,
                "model_settings": manifest["model"]["config"],
                "metric": engine.bundle.model.metric,
                "device": engine.device,
                "tower_engine": engine.tower.name,
                "index": manifest["index"],
                "num_items": len(engine.bundle.item_ids),
                "delta": {
                    "version": engine.delta_version,
                    "new_items": engine.num_new_items,
                    "unplaced_items": 0 if engine.delta is None else engine.delta.num_unplaced,
                    "deleted_items": engine.num_deleted_items,
                },
                "metrics": manifest["offline_metrics"],
                **({} if arms is None else {"experiment": arms.document()}),
            }
        )

    async def _body(self, context: RequestContext, receive: Receive) -> bytes:
        started = time.monotonic()
        try:
            return await read_body(
                context,
                receive,
                max_bytes=self._settings.max_body_bytes,
                timeout_s=self._settings.receive_timeout_s,
                budget=self._budget,
            )
        finally:
            context.stage("receive", started)


async def _member(
    service: RecallService,
    context: RequestContext,
    asked: RecallRequest | Refused,
    deadline: Deadline,
    turn: Turn,
) -> dict[str, Any]:
    started = time.monotonic()
    try:
        if isinstance(asked, Refused):
            raise invalid_input(asked.error)
        async with turn():
            recalled: Recalled = await service.recall(asked, deadline, context.headers.get(ARM_HEADER))
        context.bundle = recalled.bundle
    except ServiceError as error:
        return {"status": error.status, "problem": error.problem()}
    finally:
        context.stage("recall", started)
    if recalled.afterwards is not None:
        context.afterwards += (recalled.afterwards,)
    return {"status": 200, "answer": recalled.document(context.request_id)}


def _finished(
    app: Application,
    service: RecallService,
    labels: dict[str, str],
    begin_trace: BeginTrace | None = None,
) -> Application:
    log_requests = service.settings.log_requests
    return RequestMiddleware(
        app,
        metrics=service.metrics,
        routes=labels,
        log_requests=log_requests,
        serving=lambda: service.bundle_id,
        begin_trace=begin_trace,
    )


def _add_error_handlers(app: FastAPI) -> None:
    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return _refusal(error, _context(request))

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


def _context(request: Request) -> RequestContext:
    context: RequestContext = request.scope[SCOPE_KEY]
    return context


def _refusal(error: ServiceError, context: RequestContext) -> Response:
    context.bundle = error.bundle or context.bundle
    return Response(
        render(error.problem(context.request_id)),
        status_code=error.status,
        media_type=CONTENT_TYPE,
        headers=error.headers,
    )


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type=_JSON)


def _problem(request: Request, status: int, kind: str, detail: str, *, headers: Any = None) -> Response:
    document = problem(status, kind=kind, detail=detail, request_id=_context(request).request_id)
    return Response(render(document), status_code=status, media_type=CONTENT_TYPE, headers=headers)


def service_version() -> str:
    """As it was installed."""
    try:
        return version("t2diff-recall")
    except PackageNotFoundError:
        return "0"
