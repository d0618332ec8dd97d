"""The console's calls and files, on the admin port: it shows what users did, and may add to it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from index_builder.bundle import load_bundle
from index_builder.publish import Store
from index_builder.signature import read_keys
from model.batch import Sequence
from service.background import in_daemon_thread
from service.body import BodyBudget, deadline_of, parse, read_body
from service.console.explanation import candidate_rows, generation, sequence_rows
from service.engine import Engine, EngineRequest, build_engine
from service.errors import BundleStoreError, DeadlineExceededError, EngineFailedError, StoreUnavailableError
from service.exclusions import excluded_indices
from service.metrics import PREFIX
from service.middleware import Receive, RequestContext
from service.packed_sequence import StoredSequence
from service.recall import RecallService
from service.recalled import Recalled
from service.schemas import CONSOLE_REQUEST, EVENT, ConsoleRequest

ConsoleAnswer = Callable[[RequestContext, Receive], Awaitable[dict[str, Any]]]
STATIC = {
    "/console": ("index.html", "text/html; charset=utf-8"),
    "/console/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/console/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/console/console.css": ("console.css", "text/css; charset=utf-8"),
}
"""Path -> file and media type. They hold no data: the calls below give it."""
CONSOLE_PATHS = ("/console/recall", "/console/event", "/console/live", "/console/bundles")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
_MAX_BUNDLES = 50


def console_operations(service: RecallService) -> list[tuple[str, str, ConsoleAnswer]]:
    """Method, path and answer of every call."""
    console = _Console(service)
    return [
        ("POST", "/console/recall", console.recall),
        ("POST", "/console/event", console.event),
        ("GET", "/console/live", console.live),
        ("GET", "/console/bundles", console.bundles),
    ]


def console_file(path: str) -> bytes:
    """The bytes of one of STATIC."""
    return files("service.console").joinpath("static", STATIC[path][0]).read_bytes()


class _Console:
    def __init__(self, service: RecallService) -> None:
        self._service = service
        self._settings = service.settings
        self._budget = BodyBudget(service.settings.max_body_bytes)
        self._beside: Engine | None = None  # the last bundle that was compared with

    async def recall(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        asked = parse(CONSOLE_REQUEST, await self._body(context, receive))
        deadline = deadline_of(context, self._settings.deadline_ms)
        try:
            behaviours = await self._service.store.read(asked.user_id, deadline)
        except (StoreUnavailableError, DeadlineExceededError):
            behaviours = None  # the answer below says so
        behaviours = behaviours or StoredSequence([], [])
        recalled = await self._service.recall(asked.question(), deadline)
        engine = self._engine_that_answered(recalled)
        context.bundle = recalled.bundle
        _, sequence = self._service.known_sequence(engine, behaviours)
        answers = [await in_daemon_thread(partial(_served, engine, asked, behaviours, recalled, sequence))]
        if asked.compare is not None:
            answers.append(await in_daemon_thread(partial(self._beside_it, asked, behaviours)))
        return {"user_id": asked.user_id, "answers": answers}

    async def event(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        event = parse(EVENT, await self._body(context, receive))
        deadline = deadline_of(context, self._settings.deadline_ms)
        return {"accepted": await self._service.append([event], deadline)}

    async def live(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        """Counters as they stand: the page makes rates and percentiles of two of them."""
        manifest = self._service.engine.bundle.manifest
        samples = [
            [sample.name.removeprefix(f"{PREFIX}_"), sample.labels, sample.value]
            for family in self._service.metrics.registry.collect()
            if family.name.startswith(PREFIX)
            for sample in family.samples
        ]
        return {
            "at": time.time(),
            "bundle": self._service.bundle_id,
            "created": manifest["created"],
            "forced": bool(manifest.get("forced")),
            "checks": manifest.get("checks", []),
            "samples": samples,
        }

    async def bundles(self, context: RequestContext, receive: Receive) -> dict[str, Any]:
        """What the store holds, latest first, for the choice of a second bundle."""
        store = Store(self._settings.bundles)
        found = await in_daemon_thread(store.bundle_ids)
        return {"served": self._service.bundle_id, "bundles": found[:_MAX_BUNDLES]}

    def _beside_it(self, asked: ConsoleRequest, behaviours: StoredSequence) -> dict[str, Any]:
        """What the bundle to compare with answers to the same."""
        assert asked.compare is not None
        engine = self._engine_of(asked.compare)
        known, sequence = self._service.known_sequence(engine, behaviours)
        if sequence is None:
            empty = {"route": "popular", "reason": "unknown_items", "timings_ms": {}, "candidates": []}
            return empty | _explained(engine, asked, behaviours, None, [])
        exclude = excluded_indices(engine.bundle, asked.question(), known)
        request = EngineRequest(asked.user_id, asked.seed, sequence, asked.top_k, exclude)
        (found,) = engine.recall([request])
        if isinstance(found, EngineFailedError):
            raise found
        seconds = {"tower": found.tower_seconds, "search": found.search_seconds}
        return {
            "route": engine.bundle.model_name,
            "reason": None,
            "timings_ms": _milliseconds(seconds),
            "candidates": candidate_rows(
                engine.bundle, found.candidates.item_ids, found.candidates.scores, behaviours
            ),
        } | _explained(engine, asked, behaviours, sequence, found.candidates.item_ids)

    def _engine_that_answered(self, recalled: Recalled) -> Engine:
        """One of those that serve; the present one when it was swapped meanwhile."""
        engines = (each for each in self._service.engines() if each.bundle.bundle_id == recalled.bundle)
        return next(engines, self._service.engine)

    def _engine_of(self, bundle_id: str) -> Engine:
        """Another bundle of the store, loaded as the service loads one; the last one is kept."""
        if self._beside is None or self._beside.bundle.bundle_id != bundle_id:
            self._beside = None
            store = Store(self._settings.bundles)
            known = store.bundle_ids()
            if bundle_id not in known:
                raise BundleStoreError(f"compare: the store has no bundle {bundle_id!r}; it has {known[:5]}")
            device = self._service.engine.device
            keys = read_keys(self._settings.signature_key)
            url, milvus = store.bundle_url(bundle_id), self._settings.milvus
            bundle = load_bundle(url, device=device, keys=keys, milvus=milvus)
            self._beside = build_engine(bundle, device=device, settings=self._settings)
        return self._beside

    async def _body(self, context: RequestContext, receive: Receive) -> bytes:
        limits = self._settings.max_body_bytes, self._settings.receive_timeout_s
        return await read_body(
            context, receive, max_bytes=limits[0], timeout_s=limits[1], budget=self._budget
        )


def _explained(
    engine: Engine,
    asked: ConsoleRequest,
    behaviours: StoredSequence,
    sequence: Sequence | None,
    candidates: list[str],
) -> dict[str, Any]:
    bundle = engine.bundle
    watched = None
    if sequence is not None:
        watched = generation(bundle, asked.user_id, asked.seed, sequence, candidates)
    return {
        "bundle": bundle.bundle_id,
        "model": bundle.model_name,
        "sequence": sequence_rows(bundle, behaviours, sequence),
        "generation": watched,
    }


def _served(
    engine: Engine,
    asked: ConsoleRequest,
    behaviours: StoredSequence,
    recalled: Recalled,
    sequence: Sequence | None,
) -> dict[str, Any]:
    return {
        "route": recalled.route,
        "reason": recalled.reason,
        "degraded": recalled.degraded,
        "arm": recalled.arm,
        "timings_ms": _milliseconds(recalled.timings),
        "batch_size": recalled.batch_size,
        "candidates": candidate_rows(
            engine.bundle, recalled.candidates.item_ids, recalled.candidates.scores, behaviours
        ),
    } | _explained(engine, asked, behaviours, sequence, recalled.candidates.item_ids)


def _milliseconds(timings: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(1000 * seconds, 3) for stage, seconds in timings.items()}
