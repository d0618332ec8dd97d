"""The fallback: popular items, for users without usable history and for when something is down."""

from __future__ import annotations

from collections.abc import Set
from itertools import chain, islice

from index_builder.bundle import Bundle

ROUTE = "popular"


def popular_candidates(bundle: Bundle, top_k: int, excluded: Set[str]) -> tuple[list[str], list[float]]:
    """The most popular items that are not excluded, then the rest of the catalogue in its order.

    -> item ids and scores, `top_k` of them or all that are allowed. A score is 1 / rank: it says the
    order and nothing else.
    """
    popular = [item_id for item_id in bundle.popular if item_id not in excluded][:top_k]
    if len(popular) < top_k:
        taken = excluded | set(popular)
        rest = (item_id for item_id in bundle.item_ids if item_id not in taken)
        popular = list(islice(chain(popular, rest), top_k))
    return popular, [1.0 / rank for rank in range(1, len(popular) + 1)]
