"""Where a model goes on from: yesterday's weights, in a table that has since got rows for new items.

Every parameter and buffer keeps its values; those with a row an item (M rows, or M + 1 with padding first,
as the contract says) grow at their end. A new item begins where the items consumed beside it are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from model.counted import CountedTower
from model.data.interactions import Interactions
from model.two_tower import TwoTower

REACH = 5
"""Items at most so many behaviours apart in one sequence were consumed beside each other."""


@dataclass(frozen=True, eq=False)
class Beside:
    """How often known items were consumed beside new ones.

    new, known: (P,) item indices, each pair once   count: (P,) at least 1
    """

    new: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    known: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    count: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


@dataclass(frozen=True, eq=False)
class WarmStart:
    """A trained model to go on from.

    source: what to call it in a record   item_ids: of its rows, in their order   weights: its state
    beside: where its new items begin
    """

    source: str
    item_ids: Sequence[str]
    weights: Mapping[str, torch.Tensor]
    beside: Beside = field(default_factory=Beside)


def items_beside(log: Interactions, num_known: int, reach: int = REACH) -> Beside:
    """What was consumed within `reach` behaviours of an item whose index is above `num_known`."""
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets))  # (R,)
    item = log.item_index.astype(np.int64)
    pairs = []
    for distance in range(1, min(reach, len(log) - 1) + 1):
        together = user[distance:] == user[:-distance]
        for one, other in (
            (slice(distance, None), slice(-distance)),
            (slice(-distance), slice(distance, None)),
        ):
            chosen = together & (item[one] > num_known) & (item[other] <= num_known)
            pairs.append(np.stack([item[one][chosen], item[other][chosen]], axis=1))
    if not pairs:
        return Beside()
    unique, count = np.unique(np.concatenate(pairs), axis=0, return_counts=True)  # (P, 2)
    return Beside(unique[:, 0], unique[:, 1], count)


def check_items_continue(item_ids: Sequence[str], start: WarmStart) -> None:
    """Raise ValueError unless `item_ids` begins with the items of `start`, in their order."""
    num_known = len(start.item_ids)
    if len(item_ids) < num_known or any(
        ours != theirs for ours, theirs in zip(item_ids, start.item_ids, strict=False)
    ):
        raise ValueError(f"the first {num_known:,} items are not those of {start.source}, in their order")


def continue_from(model: TwoTower, start: WarmStart) -> None:
    """Give a new `model` the weights of `start`, and its new items rows to begin with.

    A counted model is left as it is: it is counted anew. Raises ValueError for a start that `model` cannot
    go on from: fewer items, or a tensor that changed in anything but its rows of items.
    """
    if isinstance(model, CountedTower):
        return
    num_known, grown = len(start.item_ids), model.num_items - len(start.item_ids)
    if grown < 0:
        raise ValueError(
            f"the model has {model.num_items} items, fewer than the {num_known} of {start.source}"
        )
    weights = {}
    for name, fresh in model.state_dict().items():
        before = start.weights.get(name)
        if before is None:
            raise ValueError(f"{start.source} has no {name}: train from scratch")
        if before.shape == fresh.shape:
            weights[name] = before.to(fresh)
            continue
        padding = len(before) - num_known
        if fresh.shape[1:] != before.shape[1:] or len(fresh) - len(before) != grown or padding not in (0, 1):
            raise ValueError(
                f"{name} of {start.source} is {tuple(before.shape)} and would become {tuple(fresh.shape)}, "
                "which is no row an item: this model cannot go on with more items, train it from scratch"
            )
        weights[name] = _grown(fresh.detach().clone(), before.to(fresh), start.beside, padding=padding)
    model.load_state_dict(weights)


def _grown(fresh: torch.Tensor, before: torch.Tensor, beside: Beside, *, padding: int) -> torch.Tensor:
    """`before`, then for each new item the mean of the rows beside it.   fresh: (M', ...), before: (M, ...)

    A row takes the mean's direction and the neighbours' mean norm, for a mean alone is shorter than what
    it is the mean of. An item that nothing was beside keeps its first, random direction at the median norm.
    """
    old = len(before)
    known = before[padding:]
    fresh[:old] = before
    if not fresh.is_floating_point():
        return fresh
    new = fresh[old:]  # a view
    norm = _norm(known)
    if fresh.ndim > 1:
        new *= (norm.median() / _norm(new).clamp(min=1e-12)).reshape(-1, *[1] * (fresh.ndim - 1))
    of_new = torch.from_numpy(beside.new).to(fresh.device) - 1 - len(known)  # (P,) rows of `new`
    of_known = torch.from_numpy(beside.known).to(fresh.device) - 1
    count = torch.from_numpy(beside.count).to(fresh)
    total = torch.zeros(len(new), device=fresh.device, dtype=fresh.dtype).index_add(0, of_new, count)
    there = total > 0
    each = count.reshape(-1, *[1] * (fresh.ndim - 1))
    mean = torch.zeros_like(new).index_add(0, of_new, known[of_known] * each)[there]
    if fresh.ndim > 1:
        wanted = torch.zeros_like(total).index_add(0, of_new, norm[of_known] * count)[there] / total[there]
        mean *= (wanted / _norm(mean).clamp(min=1e-12)).reshape(-1, *[1] * (fresh.ndim - 1))
    else:
        mean /= total[there]
    new[there] = mean
    return fresh


def _norm(rows: torch.Tensor) -> torch.Tensor:
    """(M, ...) -> (M,)"""
    return rows.flatten(1).norm(dim=1) if rows.ndim > 1 else rows.abs()
