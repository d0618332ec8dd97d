"""The door of both HTTP apps while there are API keys; without keys it is not built.

What is not listed as open needs a key: a route that somebody adds is closed until it is thought of. A refusal
is written here, before the body is read and before anything else is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.api_keys import SCOPES
from service.callers import Callers
from service.errors import CONTENT_TYPE, ServiceError, render
from service.middleware import SCOPE_KEY, Application, Receive, RequestContext, Scope, Send


@dataclass(frozen=True)
class Need:
    """What a path takes: a key with one of the scopes.

    metered: counts towards the caller's rate   queued: holds one of the places while it is answered
    """

    scopes: frozenset[str]
    metered: bool = True
    queued: bool = False


OPEN = None
_RECALL = frozenset({"recall"})
PUBLIC_NEEDS: dict[str, Need | None] = {
    "/recall": Need(_RECALL, queued=True),
    "/recall/batch": Need(_RECALL),  # its members are charged and take their places one by one, once read
    "/events": Need(frozenset({"events"})),
    "/v2/models/recall": Need(_RECALL),
    "/v2/health/live": OPEN,
    "/v2/health/ready": OPEN,
}
ANY_KEY = Need(frozenset(SCOPES))
ADMIN = Need(frozenset({"admin"}), metered=False)  # a rollback must not wait for a rate


def admin_needs(*, open_metrics: bool) -> dict[str, Need | None]:
    """What the admin listener's paths take, beside ADMIN.   open_metrics: whoever reaches it may read them"""
    return {"/metrics": OPEN if open_metrics else Need(frozenset({"metrics", "admin"}), metered=False)}


def guarded(
    app: Application, callers: Callers | None, needs: Mapping[str, Need | None], *, otherwise: Need
) -> Application:
    """The app behind the door; the app itself while there are no keys."""
    return app if callers is None else AccessControl(app, callers, needs, otherwise=otherwise)


class AccessControl:
    """Asks for keys in front of an app."""

    def __init__(
        self, app: Application, callers: Callers, needs: Mapping[str, Need | None], *, otherwise: Need
    ) -> None:
        """otherwise: of paths that `needs` does not know"""
        self._app = app
        self._callers = callers
        self._needs = needs
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        need = self._needs.get(scope["path"], self._otherwise) if scope["type"] == "http" else OPEN
        if need is OPEN:
            await self._app(scope, receive, send)
            return
        context: RequestContext = scope[SCOPE_KEY]
        try:
            caller = self._callers.admit(
                scope["headers"], need.scopes, now=context.started if need.metered else None
            )
            context.caller = caller
            if need.queued:
                caller.enter()
            caller.outcomes["accepted"] += 1
        except ServiceError as error:
            await _refuse(error, scope, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if need.queued:
                caller.leave()


async def _refuse(error: ServiceError, scope: Scope, send: Send) -> None:
    context: RequestContext = scope[SCOPE_KEY]
    body = render(error.problem(context.request_id))
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(body))]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    if _long_body(scope):
        headers.append((b"connection", b"close"))  # what is still to come is not wanted
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_MAX_DISCARDED_BYTES = 64 * 1024


def _long_body(scope: Scope) -> bool:
    """Whether reading the rest, only to keep the connection, would cost more than a new connection."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return True
        if name == b"content-length":
            return not value.isdigit() or len(value) > 9 or int(value) > _MAX_DISCARDED_BYTES
    return False
