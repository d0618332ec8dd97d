"""The fallback: popular items, for users without usable history and for when something is down."""

from __future__ import annotations

from collections.abc import Set
from itertools import chain, islice

from index_builder.bundle import Bundle
from index_builder.delta_index import DeltaIndex
from service.candidate_list import Listed
from service.engine import Engine
from service.packed_sequence import StoredSequence
from service.recalled import POPULAR, Recalled
from service.schemas import RecallRequest

_NONE: frozenset[str] = frozenset()


def popular_answer(
    engine: Engine, request: RecallRequest, behaviours: StoredSequence, *, reason: str, degraded: bool
) -> Recalled:
    """The answer to `request` without the model.   reason: why not the model"""
    excluded = set(request.exclude_item_ids)
    if request.exclude_seen:
        excluded.update(behaviours.item_ids)
    candidates = popular_candidates(engine.bundle, request.top_k, excluded, engine.delta)
    return Recalled(
        user_id=request.user_id,
        bundle=engine.bundle.bundle_id,
        route=POPULAR,
        candidates=candidates,
        degraded=degraded,
        reason=reason,
    )


def popular_candidates(
    bundle: Bundle, top_k: int, excluded: Set[str], delta: DeltaIndex | None = None
) -> Listed:
    """The most popular items that are not excluded, then the rest of the catalogue in its order.

    delta: new items, which come last, and deleted ones, which never do

    -> `top_k` of them or all that are allowed. A score is 1 / rank: it says the order and nothing else.
    """
    deleted, new = (_NONE, ()) if delta is None else (delta.deleted, delta.item_ids)
    allowed = (name for name in bundle.popular if name not in excluded and name not in deleted)
    popular = list(islice(allowed, top_k))
    if len(popular) < top_k:
        taken = excluded | set(popular)
        catalogue = chain(bundle.item_ids, new)
        rest = (name for name in catalogue if name not in taken and name not in deleted)
        popular = list(islice(chain(popular, rest), top_k))
    return Listed(popular, [1.0 / rank for rank in range(1, len(popular) + 1)])
