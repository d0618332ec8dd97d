"""BERT4Rec: a bidirectional transformer that fills in blanks (Sun et al. 2019, CIKM, arXiv:1904.06690).

Multi-head attention over the whole sequence (Eq. 1, 2) and GELU feed-forward networks (Eq. 3), each
wrapped as LayerNorm(x + Dropout(g(x))) (Eq. 4-6); the state of a masked position goes through
GELU(h·W^P + b^P) and is scored against the input's item table (Eq. 7). Training masks behaviours at random
and predicts them from both sides (the Cloze task, Eq. 8); serving appends one mask token and reads it.
As in the authors' code, a LayerNorm follows the sum of item and position and another that last GELU.

This model is not causal. From a training batch it takes the window and the target of its last position
as one sequence, n + 1 long, and may mask every item that the batch has as a target; in a share of the
sequences (`mask_last_share`) only the last one, as when serving. One pass so teaches about ρ·n positions,
not all n.

Departures. No item bias b^O in Eq. 7: the last LayerNorm's own bias, a constant part of every state, can
learn one. Masks are drawn anew in every epoch instead of ten times beforehand, each position by itself
instead of a fixed number a sequence, and a window's first item is never masked. The softmax is sampled for
large corpora. The paper's settings for MovieLens-1M: `max_length = 200`, `mask_share = 0.2`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from model.baselines.attention import attend
from model.baselines.dense_tower import last_state
from model.baselines.item_table_tower import ItemTableTower
from model.baselines.settings import check_at_least, check_heads, check_share
from model.batch import PADDING_INDEX, SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS
from model.noise import Noise
from model.small_embedding import SmallEmbedding


@dataclass(frozen=True)
class BERT4RecConfig:
    """Everything that shapes a BERT4Rec model."""

    embedding_dim: int = 64  # D
    max_length: int = 50  # n, not counting the mask token
    num_layers: int = 2
    num_heads: int = 2
    feed_forward_hidden: int = 256
    dropout: float = 0.2
    mask_share: float = 0.2  # ρ
    mask_last_share: float = 0.1  # sequences in which only the last item is masked
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS  # above it, the softmax is sampled
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("max_length", "num_layers", "num_heads", "feed_forward_hidden"))
        check_heads(self)
        check_share(self, ("dropout", "mask_share"))
        if not 0 <= self.mask_last_share <= 1:
            raise ValueError(f"mask_last_share must be in [0, 1], got {self.mask_last_share}")


class BERT4Rec(ItemTableTower):
    """The user tower is the transformer, the item tower the embedding table."""

    def __init__(self, config: BERT4RecConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.config = config
        dim = config.embedding_dim
        self.mask_token = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.position = SmallEmbedding(config.max_length + 1, dim)
        nn.init.normal_(self.position.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(BidirectionalBlock(config) for _ in range(config.num_layers))
        self.of_output = nn.Linear(dim, dim)  # W^P, b^P
        self.norm_output = nn.LayerNorm(dim)

    # --- the contract ---------------------------------------------------------------------------

    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, D) the state of a mask token that stands after the last behaviour."""
        item_index = F.pad(batch.item_index, (0, 1), value=PADDING_INDEX)  # (B, N + 1)
        appended = torch.zeros_like(item_index, dtype=torch.bool).scatter(1, batch.length[:, None], True)
        return last_state(self.states(item_index, appended), batch.length + 1)

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The Cloze loss (Eq. 8): the mean over masked positions of -log P(the true item)."""
        item_index, maskable = cloze_sequence(batch)
        masked = self.draw_mask(maskable, batch.length)
        return self.items.loss(self.states(item_index, masked)[masked], item_index[masked])

    # --- the parts ------------------------------------------------------------------------------

    def states(self, item_index: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """LayerNorm(GELU(h·W^P + b^P)) of every position.

        item_index: (B, N + 1)   masked: (B, N + 1) bool, where the item is hidden   -> (B, N + 1, D)
        """
        tokens = torch.where(masked[:, :, None], self.mask_token, self.items.embed(item_index))
        tokens = tokens + self.position.weight[: item_index.shape[1]]
        tokens = self.dropout(self.norm(tokens))
        real = masked | (item_index != PADDING_INDEX)
        for block in self.blocks:
            tokens = block(tokens, real)
        return self.norm_output(F.gelu(self.of_output(tokens)))

    def draw_mask(self, maskable: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Which positions to hide: each with probability ρ, or the last one alone; at least one a sequence.

        maskable: (B, N + 1) bool   length: (B,) without the last target, so also that target's column
        """
        last = torch.zeros_like(maskable).scatter(1, length[:, None], True) & maskable
        chosen = (torch.rand(maskable.shape, device=maskable.device) < self.config.mask_share) & maskable
        only_last = torch.rand(len(maskable), device=maskable.device) < self.config.mask_last_share
        only_last = only_last | ~chosen.any(dim=1)
        return torch.where(only_last[:, None], last, chosen)


def cloze_sequence(batch: SequenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """A window and the target of its last position as one sequence; and which items a batch asks for.

    -> item_index (B, N + 1), maskable (B, N + 1) bool
    """
    assert batch.target is not None
    last_target = batch.target.gather(1, (batch.length - 1)[:, None])  # (B, 1)
    item_index = F.pad(batch.item_index, (0, 1), value=PADDING_INDEX)
    item_index = item_index.scatter(1, batch.length[:, None], last_target)
    return item_index, F.pad(batch.target != 0, (1, 0), value=False)


class BidirectionalBlock(nn.Module):
    """One transformer layer, LayerNorm after each residual (Eq. 5, 6)."""

    def __init__(self, config: BERT4RecConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.num_heads = config.num_heads
        self.of_query_key_value = nn.Linear(dim, 3 * dim)
        self.of_output = nn.Linear(dim, dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, config.feed_forward_hidden),
            nn.GELU(),
            nn.Linear(config.feed_forward_hidden, dim),
        )
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """tokens: (B, N, D)   real: (B, N) bool, what may be attended to"""
        query, key, value = self.of_query_key_value(tokens).chunk(3, dim=-1)
        attended = attend(
            self._heads(query), self._heads(key), self._heads(value), real[:, None, None, :], self.dropout
        )  # (B, heads, N, D / heads)
        tokens = self.norm_attention(
            tokens + self.dropout(self.of_output(attended.transpose(1, 2).flatten(2)))
        )
        return self.norm_feed_forward(tokens + self.dropout(self.feed_forward(tokens)))

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
