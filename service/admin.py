"""Admin calls: look at the bundle store now, roll back, add and delete items.

Changes go to the store, so that every replica follows within its poll interval; this one looks at once. They
run away from the event loop, which answers meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from index_builder.delta import Delta, DeltaFile, NewItem
from index_builder.publish import Store
from index_builder.signature import read_keys
from service.background import in_daemon_thread
from service.body import BodyBudget, parse, read_body
from service.errors import BundleRefusedError, BundleStoreError, BundleStoreUnavailableError
from service.middleware import Receive, RequestContext
from service.schemas import ADD_ITEMS, ITEM_IDS, ROLLBACK, NewItemRequest
from service.settings import ServiceSettings

AdminAnswer = Callable[[RequestContext, Receive], Awaitable[dict[str, Any]]]
Reload = Callable[[], Awaitable[dict[str, Any]]]
Result = TypeVar("Result")
ADMIN_PATHS = (
    "/admin/reload",
    "/admin/rollback",
    "/admin/items",
    "/admin/items/delete",
    "/admin/items/undelete",
)
_MAX_LISTED = 1_000


def admin_operations(settings: ServiceSettings, reload: Reload) -> list[tuple[str, str, AdminAnswer]]:
    """Method, path and answer of every admin call.   reload: look at the store now; what became of it"""
    admin = _Admin(settings, reload)
    return [
        ("POST", "/admin/reload", admin.reload),
        ("POST", "/admin/rollback", admin.rollback),
        ("GET", "/admin/items", admin.list_items),
        ("POST", "/admin/items", admin.add),
        ("DELETE", "/admin/items", admin.delete),
        ("POST", "/admin/items/delete", admin.delete),
        ("POST", "/admin/items/undelete", admin.undelete),
    ]


class _Admin:
    def __init__(self, settings: ServiceSettings, reload: Reload) -> None:
        self._settings = settings
        self._reload = reload
        self._budget = BodyBudget(settings.max_body_bytes)

    async def reload(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        return await self._look(context)

    async def rollback(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        body = await self._body(context, receive)
        target = parse(ROLLBACK, body).to if body.strip() else None
        await _change(lambda: self._store().rollback(target))
        return await self._look(context)

    async def list_items(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        delta = await _change(self._file().read)
        items = list(delta.items.values())[-_MAX_LISTED:]
        return {
            **_summary(delta),
            "items": [
                {
                    "item_id": item.item_id,
                    "similar_item_ids": dict(item.similar),
                    "features": list(item.features),
                    "added": item.added,
                }
                for item in items
            ],
            "deleted": [
                {"item_id": item_id, "deleted": at}
                for item_id, at in list(delta.deleted.items())[-_MAX_LISTED:]
            ],
        }

    async def add(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        asked = parse(ADD_ITEMS, await self._body(context, receive))
        items = [_new_item(item) for item in asked.items]
        return await self._written(context, lambda file: file.add(items))

    async def delete(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        asked = parse(ITEM_IDS, await self._body(context, receive))
        return await self._written(context, lambda file: file.delete(asked.item_ids))

    async def undelete(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        asked = parse(ITEM_IDS, await self._body(context, receive))
        return await self._written(context, lambda file: file.undelete(asked.item_ids))

    async def _written(self, context: RequestContext, change: Callable[[DeltaFile], Delta]) -> dict[str, Any]:
        """Change the store's delta, then follow it. What was written stays so when this replica cannot."""
        file = self._file()
        delta = await _change(lambda: change(file))
        outcome = await self._reload()
        context.bundle = outcome["bundle"]
        refused = outcome.get("delta_refused")
        return _summary(delta) | {"in_use": refused is None} | ({"reason": refused} if refused else {})

    async def _look(self, context: RequestContext) -> dict[str, Any]:
        outcome = await self._reload()
        context.bundle = outcome["bundle"]
        refused = outcome["reason"] if outcome["outcome"] == "refused" else outcome.get("delta_refused")
        if refused:
            raise BundleRefusedError(refused)
        return outcome

    def _store(self) -> Store:
        keys = read_keys(self._settings.signature_key)
        return Store(self._settings.bundles, keys=keys, milvus=self._settings.milvus)

    def _file(self) -> DeltaFile:
        return DeltaFile(self._settings.bundles)

    async def _body(self, context: RequestContext, receive: Receive) -> bytes:
        limits = self._settings.max_body_bytes, self._settings.receive_timeout_s
        return await read_body(
            context, receive, max_bytes=limits[0], timeout_s=limits[1], budget=self._budget
        )


async def _change(function: Callable[[], Result]) -> Result:
    try:
        return await in_daemon_thread(function)
    except ValueError as error:
        raise BundleStoreError(str(error)) from None
    except OSError as error:
        raise BundleStoreUnavailableError(
            f"the bundle store did not take it: {error}; try again", headers={"Retry-After": "5"}
        ) from None


def _new_item(asked: NewItemRequest) -> NewItem:
    similar = asked.similar_item_ids
    weights = similar if isinstance(similar, Mapping) else dict.fromkeys(similar, 1.0)
    return NewItem(asked.item_id, weights, tuple(asked.features))


def _summary(delta: Delta) -> dict[str, Any]:
    return {
        "version": delta.version,
        "new_items": len(delta.items),
        "deleted_items": len(delta.deleted),
    }
