"""What each position of a window has behind it, for a training softmax that leaves it out (`exclude_seen`).

A service that offers nobody what they have seen asks a model only to tell unseen items apart. With the
seen ones among the wrong answers it also learns to push them down, at the cost of that (PAPER.md,
*Recipes tried*).
"""

from __future__ import annotations

import torch

SeenPairs = tuple[torch.Tensor, torch.Tensor]
"""row (S,) of a position, ascending, and item (S,): S pairs of a position and what it has seen."""


def seen_pairs(item_index: torch.Tensor, supervised: torch.Tensor) -> SeenPairs:
    """The behaviours of its window up to each supervised position, itself among them.

    item_index: (B, N) in 1..M, 0 at padding, which stands to the right   supervised: (B, N) bool, P are true
    -> row (S,) in 0..P-1, item (S,) in 0..M-1
    """
    column = torch.arange(item_index.shape[1], device=item_index.device)
    sequence, position = supervised.nonzero(as_tuple=True)  # (P,) each
    row, behind = (column <= position[:, None]).nonzero(as_tuple=True)  # (S,) each
    return row, item_index[sequence[row], behind] - 1


def pairs_among(seen: SeenPairs, items: torch.Tensor) -> SeenPairs:
    """The pairs whose item is one of `items` (U,), ascending; the item as its place there."""
    row, item = seen
    place = torch.searchsorted(items, item).clamp(max=len(items) - 1)
    there = items[place] == item
    return row[there], place[there]
