"""What must not come back to one user, as the parts of an engine name it."""

from __future__ import annotations

from itertools import chain

import numpy as np

from index_builder.bundle import Bundle
from index_builder.delta_index import DeltaIndex
from service.packed_sequence import StoredSequence
from service.schemas import RecallRequest


def excluded_indices(bundle: Bundle, request: RecallRequest, seen: np.ndarray) -> np.ndarray:
    """What of this bundle must not come back.   seen: (N,) item indices   -> (E,) served indices"""
    exclude = seen if request.exclude_seen else seen[:0]
    if request.exclude_item_ids:
        index_of = bundle.item_index_of
        asked = [index_of[item_id] for item_id in request.exclude_item_ids if item_id in index_of]
        exclude = np.concatenate([exclude, np.array(asked, np.int64)])
    if bundle.rows.served_index is None:
        return exclude
    exclude = bundle.rows.served(exclude)
    return exclude[exclude > 0]  # a retired item cannot come back


def excluded_new(delta: DeltaIndex, request: RecallRequest, behaviours: StoredSequence) -> np.ndarray:
    """The new items that must not come back, which no model knows yet: by their ids.   -> (E,)"""
    seen = behaviours.item_ids if request.exclude_seen else []
    return delta.rows_of(chain(seen, request.exclude_item_ids))
