"""Where a model goes on from: yesterday's weights, in a table that has since got rows for new items.

Every parameter and buffer keeps its values; those with a row an item grow at their end. A new item begins
where the items consumed beside it are; one that training has not met yet is put there again afterwards, for
until somebody consumes it, all that a softmax does to it is to push it away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from model.counted import CountedTower
from model.data.interactions import Interactions
from model.registry import build_model
from model.two_tower import TwoTower

REACH = 5
"""Items at most so many behaviours apart in one sequence were consumed beside each other."""
_SIZES = (7, 8)
"""Numbers of items whose models are compared to see which tensors follow from it."""


@dataclass(frozen=True, eq=False)
class Beside:
    """How often known items were consumed beside new ones.

    new, known: (P,) item indices   count: (P,) above 0, of each pair
    """

    new: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    known: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    count: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))


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


def items_beside(log: Interactions, is_new: np.ndarray, reach: int = REACH) -> Beside:
    """What else was consumed within `reach` behaviours of new items.   is_new: (M,) bool"""
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets))  # (R,)
    item = log.item_index.astype(np.int64)
    new = is_new[item - 1]  # (R,)
    pairs = [np.empty((0, 2), np.int64)]
    for distance in range(1, min(reach, len(log) - 1) + 1):
        together = user[distance:] == user[:-distance]
        later, earlier = slice(distance, None), slice(-distance)
        for one, other in ((later, earlier), (earlier, later)):
            chosen = together & new[one] & ~new[other]
            pairs.append(np.stack([item[one][chosen], item[other][chosen]], axis=1))
    unique, count = np.unique(np.concatenate(pairs), axis=0, return_counts=True)  # (P, 2)
    return Beside(unique[:, 0], unique[:, 1], count.astype(np.float64))


def check_items_continue(item_ids: Sequence[str], start: WarmStart) -> None:
    """Raise ValueError unless `item_ids` begins with the items of `start`, in their order."""
    num_known = len(start.item_ids)
    if len(item_ids) < num_known or any(
        ours != theirs for ours, theirs in zip(item_ids, start.item_ids, strict=False)
    ):
        raise ValueError(f"the first {num_known:,} items are not those of {start.source}, in their order")


def item_tensors(model_name: str, model_config: dict[str, Any]) -> dict[str, int]:
    """Which parameters and buffers have a row an item, and how many rows of padding come first (0 or 1).

    None of a counted model, which is counted anew.
    Raises ValueError for a model whose tensors follow from the number of items in any other way.
    """
    few, more = (build_model(model_name, model_config, size) for size in _SIZES)
    padding: dict[str, int] = {}
    if isinstance(few, CountedTower):
        return padding
    others = more.state_dict()
    for name, tensor in few.state_dict().items():
        other = others[name]
        if tensor.shape == other.shape:
            continue
        padding[name] = len(tensor) - _SIZES[0]
        if tensor.shape[1:] != other.shape[1:] or len(other) != padding[name] + _SIZES[1]:
            raise ValueError(f"{name} of {model_name} has no row an item: train the model from scratch")
        if padding[name] not in (0, 1):
            raise ValueError(f"{name} of {model_name} has {padding[name]} rows beside those of items")
    return padding


def continue_from(model: TwoTower, start: WarmStart, padding_of: Mapping[str, int]) -> None:
    """Give a new `model` the weights of `start`, and its new items rows to begin with.

    padding_of: of `item_tensors`   Raises ValueError for a start that `model` cannot go on from.
    """
    if isinstance(model, CountedTower):
        return
    num_known = len(start.item_ids)
    weights = {}
    for name, fresh in model.state_dict().items():
        before = start.weights.get(name)
        new_shape = (
            fresh.shape if name not in padding_of else (padding_of[name] + num_known, *fresh.shape[1:])
        )
        if before is None or before.shape != new_shape or num_known > model.num_items:
            found = "missing" if before is None else tuple(before.shape)
            raise ValueError(
                f"{name} of {start.source} is {found}, not {tuple(new_shape)}: it is of another model, "
                "train from scratch"
            )
        weights[name] = before.to(fresh).clone()
        if name in padding_of:
            weights[name] = torch.cat([weights[name], fresh[len(before) :]])
            _scale_to_median(weights[name][padding_of[name] :], num_known)
    model.load_state_dict(weights)
    place_beside(model, start.beside, padding_of)


@torch.no_grad()
def place_beside(model: TwoTower, beside: Beside, padding_of: Mapping[str, int]) -> None:
    """Move each new item of `beside` to the mean of what it was consumed beside, in place.

    Its rows take the mean's direction and the neighbours' mean norm, for a mean alone is shorter than what
    it is the mean of.
    """
    if not len(beside.new):
        return
    new, of_new = np.unique(beside.new, return_inverse=True)
    state = model.state_dict()
    for name, padding in padding_of.items():
        table = state[name][padding:]  # (M, ...), a view of the model's own
        if not table.is_floating_point():
            continue
        row = torch.from_numpy(of_new).to(table.device)  # (P,) in 0..len(new)
        known = torch.from_numpy(beside.known - 1).to(table.device)
        neighbour = table[known].reshape(len(known), -1)  # (P, D)
        count = torch.from_numpy(beside.count).to(neighbour)[:, None]
        weight = count / count.new_zeros(len(new), 1).index_add(0, row, count)[row]
        mean = neighbour.new_zeros(len(new), neighbour.shape[1]).index_add(0, row, neighbour * weight)
        if table.ndim > 1:
            norm = neighbour.norm(dim=1, keepdim=True)
            wanted = norm.new_zeros(len(new), 1).index_add(0, row, norm * weight)
            mean *= wanted / mean.norm(dim=1, keepdim=True).clamp(min=1e-12)
        table[torch.from_numpy(new - 1).to(table.device)] = mean.reshape(-1, *table.shape[1:])


def _scale_to_median(table: torch.Tensor, num_known: int) -> None:
    """Give the rows after `num_known`, which point anywhere, the median norm of those before.  (M, ...)"""
    if table.ndim < 2 or num_known in (0, len(table)):
        return
    norm = table.flatten(1).norm(dim=1)
    factor = norm[:num_known].median() / norm[num_known:].clamp(min=1e-12)
    table[num_known:] *= factor.reshape(-1, *[1] * (table.ndim - 1))
