"""Rows that share a moment, put in random order: what an order that the log does not hold is worth.

MovieLens users rate whole pages of films in one second, and the order inside such a tie is the site's
listing order, which helps a model that no live request would help.
"""

from __future__ import annotations

import numpy as np

from model.data.interactions import DataError, Interactions, RuleCount


def shuffle_time_ties(interactions: Interactions, seed: int) -> Interactions:
    """The same rows with every run of one user's equal timestamps in random order.

    Raises DataError for a log without times, where all rows of a user would be one tie.
    """
    if not interactions.has_times:
        raise DataError("shuffling ties in time needs times, and this log has none")
    user = np.repeat(np.arange(interactions.num_users), np.diff(interactions.offsets))
    draw = np.random.default_rng(seed).random(len(interactions))
    order = np.lexsort((draw, interactions.timestamp, user))
    return Interactions.create(
        user_ids=interactions.user_ids,
        item_ids=interactions.item_ids,
        offsets=interactions.offsets,
        item_index=interactions.item_index[order],
        timestamp=interactions.timestamp,
        report=(
            *interactions.report,
            RuleCount(
                rule=f"ties in time shuffled, seed {seed}",
                users=int(np.count_nonzero(np.diff(interactions.offsets))),
                items=len(np.unique(interactions.item_index)),
                interactions=len(interactions),
            ),
        ),
    )
