"""Softmax cross-entropy over every item without ever holding all the scores.

The plain form builds (P, M) scores, their softmax and their gradient, and spends its time moving them
through memory. Here rows are taken in pieces whose scores stay in the processor's cache, and the
gradients are made while they are there (as in "Cut your losses", Wijmans et al. 2024,
arXiv:2411.09009). On a processor with bfloat16 instructions the products over a large catalogue are in
bfloat16, sums of them and everything else in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional as F

from model.seen_items import SeenPairs

SCORES_AT_ONCE = 1 << 20
"""4 MiB of float32 scores: within a share of the last cache."""

MIN_ROWS = 64

MIN_ITEMS_BFLOAT16 = 1_024
"""Below it bfloat16 saves nothing."""

SMALLEST = torch.finfo(torch.float32).tiny


def linear_cross_entropy(
    user_embedding: torch.Tensor,
    item_embeddings: torch.Tensor,
    target: torch.Tensor,
    seen: SeenPairs | None = None,
) -> torch.Tensor:
    """Mean of -log softmax(user · items)[target], an item's score being its best over a user's routes.

    user_embedding: (P, D) or (P, R, D)   item_embeddings: (M, D)   target: (P,) rows of item_embeddings
    seen: of each user what the softmax leaves out, unless it is the target   -> scalar
    """
    if user_embedding.device.type != "cpu":
        return plain_cross_entropy(user_embedding, item_embeddings, target, seen)
    routes = user_embedding if user_embedding.ndim == 3 else user_embedding[:, None]  # (P, R, D)
    loss: torch.Tensor = _LinearCrossEntropy.apply(routes, item_embeddings, target, seen)
    return loss


def plain_cross_entropy(
    user_embedding: torch.Tensor,
    item_embeddings: torch.Tensor,
    target: torch.Tensor,
    seen: SeenPairs | None = None,
) -> torch.Tensor:
    """`linear_cross_entropy` with all the scores at once."""
    routes = user_embedding if user_embedding.ndim == 3 else user_embedding[:, None]  # (P, R, D)
    scores = (routes @ item_embeddings.T).amax(dim=1)  # (P, M)
    if seen is not None:
        row, item = seen
        kept = scores[row, item].masked_fill(item != target[row], float("-inf"))
        scores = scores.index_put((row, item), kept)
    return F.cross_entropy(scores, target)


def product_dtype(num_items: int) -> torch.dtype:
    """What matrix products are made in on this processor."""
    return torch.bfloat16 if num_items >= MIN_ITEMS_BFLOAT16 and _has_bfloat16() else torch.float32


@functools.cache
def _has_bfloat16() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, user: torch.Tensor, items: torch.Tensor, target: torch.Tensor, seen: SeenPairs | None
    ) -> torch.Tensor:
        """user: (P, R, D)   items: (M, D)   target: (P,)"""
        num_users, num_routes, _ = user.shape
        num_items = len(items)
        dtype = product_dtype(num_items)
        user_16, items_16 = user.to(dtype), items.to(dtype)
        user_gradient = torch.zeros(user.shape)
        items_gradient = torch.zeros(items.shape)
        loss = torch.zeros(())
        num_rows = min(max(SCORES_AT_ONCE // num_items, MIN_ROWS), num_users)
        # kept over the pieces, for fresh memory is slow
        product = torch.empty(num_rows, num_items, dtype=dtype)
        best, scores = torch.empty(2, num_rows, num_items).unbind()
        route = torch.zeros(num_rows, num_items, dtype=torch.uint8) if num_routes > 1 else None
        for first in range(0, num_users, num_rows):
            rows = slice(first, min(first + num_rows, num_users))
            count, answer = rows.stop - first, target[rows, None]
            exact = (user[rows] * items[answer]).sum(dim=-1)  # (rows, R) the targets' scores, not rounded
            for number in range(num_routes):
                into = scores if number else best
                into[:count] = torch.mm(user_16[rows, number], items_16.T, out=product[:count])
                if seen is not None:
                    into.view(-1)[_places(seen, rows, num_items)] = float("-inf")
                into[:count].scatter_(1, answer, exact[:, number, None])
                if route is not None and number:
                    better = scores[:count] > best[:count]
                    route[:count].masked_fill_(better, number)
                    torch.maximum(best[:count], scores[:count], out=best[:count])
            probability = torch.softmax(best[:count], dim=-1, out=scores[:count])
            loss -= probability.gather(1, answer).clamp(min=SMALLEST).log().sum()
            for number in range(num_routes):
                slope = product[:count].copy_(probability)
                if route is not None:
                    slope.masked_fill_(route[:count] != number, 0)
                user_gradient[rows, number] = slope @ items_16
                items_gradient += slope.T @ user_16[rows, number]
            # the other part of the slope, -1 at the target, is not rounded
            of_target = torch.zeros_like(answer) if route is None else route[:count].gather(1, answer).long()
            chosen = of_target[:, 0]
            row = torch.arange(first, rows.stop)
            user_gradient[row, chosen] -= items[target[rows]]
            items_gradient.index_add_(0, target[rows], user[row, chosen], alpha=-1.0)
            if route is not None:
                route.zero_()
        ctx.save_for_backward(user_gradient, items_gradient)
        return loss / num_users

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        user_gradient, items_gradient = ctx.saved_tensors
        scale = gradient / len(user_gradient)
        return user_gradient * scale, items_gradient * scale, None, None


def _places(seen: SeenPairs, rows: slice, num_items: int) -> torch.Tensor:
    """Where the pairs of some rows stand in a flat (rows, M)."""
    first, last = torch.searchsorted(seen[0], torch.tensor([rows.start, rows.stop])).tolist()
    return (seen[0][first:last] - rows.start) * num_items + seen[1][first:last]
