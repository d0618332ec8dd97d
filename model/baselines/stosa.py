"""STOSA (Fan, Liu, Wang, Nazari, Zheng, Peng, Yu 2022): items, positions and users as Gaussians.

Every item is a mean and a diagonal covariance; attention weighs behaviours by the negative squared
2-Wasserstein distance between them, and the same distance ranks the items. Between Gaussians with
diagonal covariances it is

    W₂² = |μ₁ - μ₂|² + |Σ₁^½ - Σ₂^½|²

the squared Euclidean distance of the vectors [μ, Σ^½], so an index holds these, compared by `l2`:
`embedding_dim` is D in the configuration and 2D towards the index. Covariances are ELU(raw) + 1.

Departures: the default loss is the softmax over all negative distances, where the paper ranks a
target before one drawn negative and keeps that negative away from the target (`loss = "ranking"`,
the BPR loss with its hinge, weight `margin_weight`); means and covariances have layer norms of their own,
which the published code shares in places. That code also sends a sequence's means through ELU before the
first layer and, by a misspelt name in its encoder, discards the means that layers return, so that a
user's mean is that of the last item; here, as in the paper, means pass through the layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from model.baselines.dense_tower import DenseTower
from model.baselines.encoder import causal
from model.baselines.settings import check_at_least, check_choice, check_heads, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS
from model.small_embedding import SmallEmbedding

Loss = Literal["full_softmax", "ranking"]


@dataclass(frozen=True)
class STOSAConfig:
    """Everything that shapes a STOSA model."""

    embedding_dim: int = 64  # D, of the means; the covariances have as many
    max_length: int = 50
    num_layers: int = 1
    num_heads: int = 4
    feed_forward_hidden: int = 256
    dropout: float = 0.2
    loss: Loss = "full_softmax"
    margin_weight: float = 0.005
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_at_least(self, 1, ("embedding_dim", "max_length", "num_layers", "num_heads"))
        check_at_least(self, 0, ("margin_weight",))
        check_heads(self)
        check_share(self, ("dropout",))


class STOSA(DenseTower):
    """Wasserstein self-attention over Gaussian items; the table's rows are [mean, raw covariance]."""

    def __init__(self, config: STOSAConfig, num_items: int) -> None:
        super().__init__(config, num_items, dim=2 * config.embedding_dim)
        self.config = config
        self.metric = "l2"
        self.position_table = SmallEmbedding(config.max_length, 2 * config.embedding_dim)
        nn.init.normal_(self.position_table.weight, std=0.02)
        self.norm_mean = nn.LayerNorm(config.embedding_dim)
        self.norm_covariance = nn.LayerNorm(config.embedding_dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(WassersteinLayer(config) for _ in range(config.num_layers))

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, 2D) [mean, Σ^½] of the user after each position."""
        length = batch.item_index.shape[1]
        embedded = self.items.embed(batch.item_index) + self.position_table.weight[:length]  # (B, N, 2D)
        mean, raw = embedded.chunk(2, dim=-1)
        mean, raw = self.dropout(self.norm_mean(mean)), self.dropout(self.norm_covariance(raw))
        for layer in self.layers:
            mean, raw = layer(mean, raw)
        return torch.cat([mean, deviation(raw)], dim=-1)

    def item_embeddings(self) -> torch.Tensor:
        """(M, 2D) [mean, Σ^½] of item indices 1..M."""
        return self.item_embedding_rows(0, self.num_items)

    def item_embedding_rows(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, 2D) [mean, Σ^½] of item indices start + 1..stop."""
        mean, raw = self.items.item_embeddings()[start:stop].chunk(2, dim=-1)
        return torch.cat([mean, deviation(raw)], dim=-1)

    def loss(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Over -W₂² to the items.   user: (P, 2D)   target: (P,) item indices   -> scalar"""
        items = self.item_embeddings()
        if self.config.loss == "ranking":
            return self._ranking_loss(user, items, target)
        # -|u - i|² = [2u, -1] · [i, |i|²] - |u|², and a softmax does not notice what all items share
        of_user = torch.cat([2 * user, -torch.ones_like(user[:, :1])], dim=-1)
        of_items = torch.cat([items, items.square().sum(dim=-1, keepdim=True)], dim=-1)
        return self.items.loss(of_user, target, items=of_items)

    def _ranking_loss(self, user: torch.Tensor, items: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """-ln σ(W(u, i⁻) - W(u, i⁺)) + margin_weight·[W(u, i⁺) - W(i⁺, i⁻)]₊ with W for W₂²."""
        positive = items[target - 1]  # (P, 2D)
        negative = items[self.items.other_items(target, 1)[:, 0] - 1]
        to_positive = (user - positive).square().sum(dim=-1)  # (P,)
        to_negative = (user - negative).square().sum(dim=-1)
        between = (positive - negative).square().sum(dim=-1)
        margin = F.relu(to_positive - between)
        return (F.softplus(to_positive - to_negative) + self.config.margin_weight * margin).mean()


class WassersteinLayer(nn.Module):
    """Causal Wasserstein self-attention, then a feed-forward network, on means and covariances."""

    def __init__(self, config: STOSAConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.mean_stream = _Stream(config)
        self.covariance_stream = _Stream(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, mean: torch.Tensor, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mean, raw: (B, N, D), the covariance being ELU(raw) + 1   -> the same of the next layer"""
        covariance = F.elu(raw) + 1
        mean_query, mean_key, mean_value = self._heads(self.mean_stream.of_attention(mean))
        raw_query, raw_key, raw_value = self._heads(self.covariance_stream.of_attention(covariance))
        query = torch.cat([mean_query, deviation(raw_query)], dim=-1)  # (B, heads, N, 2D / heads)
        key = torch.cat([mean_key, deviation(raw_key)], dim=-1)
        score = -squared_wasserstein(query, key) / math.sqrt(mean_query.shape[-1])  # (B, heads, N, N)
        later = ~causal(mean.shape[1], mean.device)
        weight = self.dropout(score.masked_fill(later, float("-inf")).softmax(dim=-1))
        mean = self.mean_stream.finish(mean, weight @ mean_value)
        # a weighted sum of independent Gaussians has the covariance Σ_j w_j²·Σ_j
        raw = self.covariance_stream.finish(covariance, weight.square() @ (F.elu(raw_value) + 1))
        return mean, raw

    def _heads(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, N, 3D) -> three of (B, heads, N, D / heads)"""
        return values.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


class _Stream(nn.Module):
    """What means and covariances each have of their own: projections, feed-forward network and norms."""

    def __init__(self, config: STOSAConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.of_attention = nn.Linear(dim, 3 * dim)
        self.of_output = nn.Linear(dim, dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, config.feed_forward_hidden), nn.ELU(), nn.Linear(config.feed_forward_hidden, dim)
        )
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.dropout = Dropout(config.dropout)

    def finish(self, values: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """values: (B, N, D)   attended: (B, heads, N, D / heads)   -> (B, N, D)"""
        attended = self.of_output(attended.transpose(1, 2).flatten(2))
        values = self.norm_attention(values + self.dropout(attended))
        return self.norm_feed_forward(values + self.dropout(self.feed_forward(values)))


def squared_wasserstein(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """W₂² between every two Gaussians given as [μ, Σ^½].   (..., P, F), (..., Q, F) -> (..., P, Q)"""
    squares = first.square().sum(dim=-1)[..., :, None] + second.square().sum(dim=-1)[..., None, :]
    return squares - 2 * first @ second.transpose(-1, -2)


def deviation(raw: torch.Tensor) -> torch.Tensor:
    """Σ^½ = √(ELU(raw) + 1), whose gradient stays finite where the covariance vanishes."""
    return torch.exp(raw.clamp(max=0) / 2) * torch.sqrt(1 + raw.clamp(min=0))
