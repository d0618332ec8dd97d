"""A plain transformer encoder whose reader says who may look at whom; pre-norm, no positions of its own."""

from __future__ import annotations

import torch
from torch import nn

from model.baselines.attention import attend
from model.dropout import Dropout


class Encoder(nn.Module):
    """Layers of self-attention and feed-forward networks, then a LayerNorm."""

    def __init__(self, dim: int, *, num_layers: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_heads=num_heads, hidden=hidden, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """tokens: (B, N, D)   allowed: (..., N, N) bool, true where a row may read a column   -> (B, N, D)"""
        for layer in self.layers:
            tokens = layer(tokens, allowed)
        return self.norm(tokens)


class EncoderLayer(nn.Module):
    """x + Attention(LayerNorm(x)), then x + FFN(LayerNorm(x))."""

    def __init__(self, dim: int, *, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.of_query_key_value = nn.Linear(dim, 3 * dim)
        self.of_output = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, dim)
        )
        self.dropout = Dropout(dropout)

    def forward(self, tokens: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        projected = self.of_query_key_value(self.norm_attention(tokens))
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        attended = attend(query, key, value, allowed, self.dropout)  # (B, heads, N, D / heads)
        tokens = tokens + self.dropout(self.of_output(attended.transpose(1, 2).flatten(2)))
        return tokens + self.dropout(self.feed_forward(self.norm_feed_forward(tokens)))


def causal(length: int, device: torch.device) -> torch.Tensor:
    """Each position may read itself and what came before.   -> (N, N) bool"""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
