"""The item tower that most models here share: one learned vector for each item, and the losses over it.

The softmax is over every item while there are few, and over sampled ones with the logQ correction
above that (model/losses.py), exactly as T2Diff's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from model.losses import MAX_FULL_SOFTMAX_ITEMS, sample_negatives, sampled_tower_loss, tower_loss
from model.seen_items import SeenPairs, pairs_among

ItemTower = Callable[[torch.Tensor], torch.Tensor]
"""item_index (K,) in 1..M -> (K, D)"""


class ItemSoftmax(nn.Module):
    """The item table, row 0 for padding, and what training asks of it.

    max_full_softmax_items: above so many items the softmax is sampled   num_negatives: items sampled for it
    normalize_inputs: let the user tower read embeddings of variance 1 (LayerNorm without weights)
    """

    sampling_probability: torch.Tensor  # (M,) of each item as a negative

    def __init__(
        self,
        num_items: int,
        dim: int,
        *,
        max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS,
        num_negatives: int = 8_192,
        normalize_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.num_items = num_items
        self.max_full_softmax_items = max_full_softmax_items
        self.num_negatives = num_negatives
        self.normalize_inputs = normalize_inputs
        self.item_table = nn.Embedding(num_items + 1, dim, padding_idx=0)
        nn.init.normal_(self.item_table.weight, std=0.02)
        with torch.no_grad():
            self.item_table.weight[0].zero_()
        self.register_buffer("sampling_probability", torch.full((num_items,), 1.0 / num_items))

    def embed(self, item_index: torch.Tensor) -> torch.Tensor:
        """What the user tower reads, zero at padding.   item_index: (...) in 0..M -> (..., D)"""
        embedding = self.item_table(item_index)
        if not self.normalize_inputs:
            return embedding
        return F.layer_norm(embedding, embedding.shape[-1:])

    def item_embeddings(self) -> torch.Tensor:
        """(M, D) of item indices 1..M, as they are scored."""
        return self.item_table.weight[1:]

    def loss(
        self,
        user: torch.Tensor,
        target: torch.Tensor,
        items: torch.Tensor | ItemTower | None = None,
        seen: SeenPairs | None = None,
    ) -> torch.Tensor:
        """Softmax cross-entropy of user · item.

        user: (P, D), or (P, R, D) of whose routes the best counts   target: (P,) item indices in 1..M
        items: what to score in place of the table's rows, as (M, D) or as an item tower. A model that
        compares by distance passes [2·user, -1] and [item, |item|²], whose inner product is
        -|user - item|² up to the user's own norm
        seen: of each user what the softmax leaves out, unless it is the target   -> scalar
        """
        if self.num_items <= self.max_full_softmax_items:
            return tower_loss(user, self._embeddings_of(None, items), target - 1, seen)
        negative, log_expected_count = sample_negatives(self.sampling_probability, self.num_negatives)
        # only the items that are scored pass through the item tower, each once
        scored, row = torch.unique(torch.cat([target, negative + 1]), return_inverse=True)
        return sampled_tower_loss(
            user,
            self._embeddings_of(scored, items),
            row[: len(target)],
            row[len(target) :],
            log_expected_count,
            pairs_among(seen, scored - 1) if seen is not None else None,
        )

    def _embeddings_of(
        self, item_index: torch.Tensor | None, items: torch.Tensor | ItemTower | None
    ) -> torch.Tensor:
        """Of some items, or of all for None.   -> (K, D)"""
        table = self.item_embeddings() if items is None else items
        if isinstance(table, torch.Tensor):
            return table if item_index is None else table[item_index - 1]
        if item_index is None:
            item_index = torch.arange(1, self.num_items + 1, device=self.sampling_probability.device)
        return table(item_index)

    def other_items(self, target: torch.Tensor, num_each: int) -> torch.Tensor:
        """Negatives drawn evenly from all items but the target.   target: (P,) -> (P, num_each) in 1..M"""
        drawn = torch.randint(1, self.num_items, (len(target), num_each), device=target.device)
        return drawn + (drawn >= target[:, None])

    def binary_loss(
        self,
        user: torch.Tensor,
        target: torch.Tensor,
        num_each: int = 1,
        items: torch.Tensor | ItemTower | None = None,
    ) -> torch.Tensor:
        """Each target against `num_each` negatives of its own: -log σ(s⁺) - Σ log(1 - σ(s⁻)).

        user: (P, D)   target: (P,) in 1..M   items: as of `loss`   -> scalar, the mean over targets
        """
        negative = self._embeddings_of(self.other_items(target, num_each).flatten(), items)  # (P · K, D)
        negative_score = (user[:, None] * negative.unflatten(0, (-1, num_each))).sum(dim=-1)  # (P, K)
        positive_score = (user * self._embeddings_of(target, items)).sum(dim=-1)  # (P,)
        return (F.softplus(-positive_score) + F.softplus(negative_score).sum(dim=-1)).mean()

    def observe_item_counts(self, counts: torch.Tensor) -> None:
        """Negatives are drawn in proportion to count^0.75.   counts: (M,)"""
        weight = counts.double().clamp(min=1) ** 0.75
        self.sampling_probability.copy_(weight / weight.sum())
