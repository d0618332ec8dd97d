"""SASRec: a causal transformer over the sequence (Kang and McAuley 2018, ICDM, arXiv:1808.09781).

Ê = M + P (Eq. 1); blocks of causal self-attention (Eq. 2, 3) and a point-wise feed-forward network
(Eq. 4), stacked (Eq. 5), each wrapped as x + Dropout(g(LayerNorm(x))) (Section III-C); score r = F·Mᵀ
with the embeddings of the input (Eq. 6).

As in the authors' code: embeddings are multiplied by √D before positions are added, attention weights
are dropped out too, and the output goes through a last LayerNorm. Where that code adds the attention
to LayerNorm(x), and takes keys and values from x itself, this file does what the paper says.

Departures. The loss is the softmax over all items; the paper's binary loss with one negative for each
position is `loss = binary` (the negative may be an item that the user knows, but not the target).
Positions count from the start of the window, for sequences stand at its left here, where the paper's
count back from its end; `positions = relative` replaces them by a learned bias for the distance back
from the reader. Several heads and a projection of their output, where the paper has one head; the
feed-forward network is 4·D wide, not D. The paper's settings for MovieLens-1M: `max_length = 200`,
`dropout = 0.2`. `time_lag` and `normalize_inputs` are ours, so that SASRec can have whatever T2Diff has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from model.baselines.attention import attend
from model.baselines.dense_tower import DenseTower
from model.baselines.pause import PauseEmbedding
from model.baselines.settings import check_at_least, check_choice, check_heads, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS
from model.seen_items import seen_pairs
from model.sessions import NUM_LAG_BUCKETS, lag_bucket
from model.small_embedding import SmallEmbedding

Loss = Literal["full_softmax", "binary"]
Positions = Literal["absolute", "relative"]


@dataclass(frozen=True)
class SASRecConfig:
    """With max_length = 200, normalize_inputs and relative positions: SASRec with every modern habit."""

    embedding_dim: int = 64  # D
    max_length: int = 50  # n
    num_layers: int = 2
    num_heads: int = 2
    feed_forward_hidden: int = 256
    dropout: float = 0.2
    positions: Positions = "absolute"
    normalize_inputs: bool = False  # LayerNorm'd item embeddings
    time_lag: bool = False
    request_time_dropout: float = 0.1  # share of training positions that hide when the next behaviour is
    loss: Loss = "full_softmax"
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS  # above it, the softmax is sampled
    num_negatives: int = 8_192
    exclude_seen: bool = False  # from the training softmax, as T2Diff's

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_choice(self, "positions", get_args(Positions))
        check_at_least(self, 1, ("max_length", "num_layers", "num_heads", "feed_forward_hidden"))
        check_heads(self)
        check_share(self, ("dropout", "request_time_dropout"))
        if self.exclude_seen and self.loss != "full_softmax":
            raise ValueError(f"exclude_seen needs loss = full_softmax, got {self.loss}")


class SASRec(DenseTower):
    """The user tower is the transformer, the item tower the embedding table."""

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__(config, num_items, normalize_inputs=config.normalize_inputs)
        self.config = config
        self.input_scale = 1.0 if config.normalize_inputs else math.sqrt(config.embedding_dim)
        if config.positions == "absolute":
            self.position = SmallEmbedding(config.max_length, config.embedding_dim)
            nn.init.normal_(self.position.weight, std=0.02)
        if config.time_lag:
            self.pause = PauseEmbedding(
                config.embedding_dim, request_time_dropout=config.request_time_dropout
            )
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.embedding_dim)

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) F after each position; padding stands to the right, where no real position looks."""
        tokens = self.items.embed(batch.item_index) * self.input_scale
        column = torch.arange(tokens.shape[1], device=tokens.device)
        if self.config.positions == "absolute":
            tokens = tokens + self.position(column)  # Eq. 1
        lag = None
        if self.config.time_lag:
            tokens = tokens + self.pause(batch)
            lag = lag_bucket(batch.timestamp[:, :, None], batch.timestamp[:, None, :])  # (B, N, N)
        tokens = self.dropout(tokens)
        back = column[:, None] - column[None, :]  # (N, N)
        for block in self.blocks:
            tokens = block(tokens, back, lag)
        return self.norm(tokens)

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The softmax, or the paper's binary loss with one negative, of every position that has a target."""
        assert batch.target is not None
        supervised = batch.target != 0  # (B, N)
        user, target = self.states(batch)[supervised], batch.target[supervised]
        if self.config.loss == "binary":
            return self.items.binary_loss(user, target)
        seen = seen_pairs(batch.item_index, supervised) if self.config.exclude_seen else None
        return self.items.loss(user, target, seen=seen)


class CausalBlock(nn.Module):
    """One self-attention block (Eq. 2-5)."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.num_heads = config.num_heads
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.of_query_key_value = nn.Linear(dim, 3 * dim)
        self.of_output = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, config.feed_forward_hidden),
            nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(config.feed_forward_hidden, dim),
        )
        self.dropout = Dropout(config.dropout)
        self.distance_bias = self.lag_bias = None
        if config.positions == "relative":
            self.distance_bias = SmallEmbedding(config.max_length, config.num_heads)
            nn.init.zeros_(self.distance_bias.weight)
        if config.time_lag:
            self.lag_bias = SmallEmbedding(NUM_LAG_BUCKETS, config.num_heads)
            nn.init.zeros_(self.lag_bias.weight)

    def forward(self, tokens: torch.Tensor, back: torch.Tensor, lag: torch.Tensor | None) -> torch.Tensor:
        """tokens: (B, N, D)   back: (N, N) columns from reader to read   lag: (B, N, N) buckets"""
        query, key, value = self.of_query_key_value(self.norm_attention(tokens)).chunk(3, dim=-1)
        bias = self._bias(back, lag).to(query.dtype)
        attended = attend(
            self._heads(query), self._heads(key), self._heads(value), bias, self.dropout
        )  # (B, heads, N, D / heads)
        tokens = tokens + self.dropout(self.of_output(attended.transpose(1, 2).flatten(2)))
        return tokens + self.dropout(self.feed_forward(self.norm_feed_forward(tokens)))

    def _bias(self, back: torch.Tensor, lag: torch.Tensor | None) -> torch.Tensor:
        """What is added to the scores, -inf at later columns.   -> (B or 1, heads or 1, N, N)"""
        bias = torch.zeros(1, 1, *back.shape, device=back.device)
        if self.distance_bias is not None:
            bias = bias + self.distance_bias(back.clamp(min=0)).permute(2, 0, 1)
        if self.lag_bias is not None and lag is not None:
            bias = bias + self.lag_bias(lag).permute(0, 3, 1, 2)
        return bias.masked_fill(back < 0, float("-inf"))

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
