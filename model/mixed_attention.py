"""Mixed attention: session and predicted next behaviour, then the history in their light (Eq. 19-22).

Each of P positions of a sequence is read as if it were the last, all in one pass: training asks for
every position, serving for the last one only. To share the work between positions, session tokens
see the session's earlier tokens only, while x̂, one token for each position, sees the whole session.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from model.dropout import Dropout
from model.history_attention import ActivationUnit, HistoryAttention, MultiHeadHistory
from model.sessions import NUM_LAG_BUCKETS, history_mask, session_mask
from model.small_embedding import SmallEmbedding

Readout = Literal["last", "mean"]


class SessionLayer(nn.Module):
    """One transformer encoder layer over [session, x̂], pre-norm, with relative positions and time lags.

    `tokens` are the session's behaviours, `intent` the x̂ tokens; both go through the same weights.
    """

    def __init__(self, dim: int, *, num_heads: int, hidden: int, session_length: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.session_length = session_length
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.of_query = nn.Linear(dim, dim)
        self.of_key_value = nn.Linear(dim, 2 * dim)
        self.of_output = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, dim)
        )
        self.distance_bias = SmallEmbedding(session_length + 1, num_heads)  # 0..k behaviours back
        self.lag_bias = SmallEmbedding(NUM_LAG_BUCKETS, num_heads)
        self.dropout = Dropout(dropout)
        nn.init.zeros_(self.distance_bias.weight)
        nn.init.zeros_(self.lag_bias.weight)

    def update_tokens(
        self, tokens: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Session tokens attend to their own session up to themselves.

        tokens: (B, N, D)   key, value: (B, heads, N, D / heads)   allowed: (B, N, N) bool   -> (B, N, D)
        """
        query = self._heads(self.of_query(self.norm_attention(tokens)))
        position = torch.arange(tokens.shape[1], device=tokens.device)
        back = (position[:, None] - position[None, :]).clamp(0, self.session_length)
        bias = self.distance_bias(back).permute(2, 0, 1)  # (heads, N, N)
        scores = self._scores(query, key) + bias
        weight = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(dim=-1)
        return self._finish(tokens, weight @ value)

    def update_intent(
        self,
        intent: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        positions: torch.Tensor,
        allowed: torch.Tensor,
        lag: torch.Tensor | None,
    ) -> torch.Tensor:
        """Each x̂ attends to the session it follows and to itself.

        intent: (B, P, D)   positions: (B, P)   allowed: (B, P, N)   lag: (B, P, N) buckets   -> (B, P, D)
        """
        normed = self.norm_attention(intent)
        query = self._heads(self.of_query(normed))
        own_key, own_value = self.key_value_of(normed)
        column = torch.arange(key.shape[2], device=intent.device)
        back = (positions[:, :, None] + 1 - column).clamp(0, self.session_length)  # (B, P, N)
        scores = self._scores(query, key) + self.distance_bias(back).permute(0, 3, 1, 2)
        if lag is not None:
            scores = scores + self.lag_bias(lag).permute(0, 3, 1, 2)
        scores = scores.masked_fill(~allowed[:, None], float("-inf"))
        own_score = (query * own_key).sum(dim=-1, keepdim=True) / math.sqrt(query.shape[-1])
        own_score = own_score + self.distance_bias.weight[0][None, :, None, None]
        weight = torch.cat([scores, own_score], dim=-1).softmax(dim=-1)  # (B, heads, P, N + 1)
        attended = weight[..., :-1] @ value + weight[..., -1:] * own_value
        return self._finish(intent, attended)

    def key_value(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, D) -> two of (B, heads, N, D / heads)"""
        return self.key_value_of(self.norm_attention(tokens))

    def key_value_of(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for tokens that are normed already."""
        key, value = self.of_key_value(normed).chunk(2, dim=-1)
        return self._heads(key), self._heads(value)

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])

    def _finish(self, tokens: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.dropout(self.of_output(attended.transpose(1, 2).flatten(2)))
        return tokens + self.dropout(self.feed_forward(self.norm_feed_forward(tokens)))


class MixedAttention(nn.Module):
    """From behaviours and x̂ to the user embedding (Eq. 19-22)."""

    def __init__(
        self,
        dim: int,
        *,
        num_layers: int,
        num_heads: int,
        hidden: int,
        activation_hidden: int,
        session_length: int,
        readout: Readout,
        history_attention: HistoryAttention,
        dropout: float,
    ) -> None:
        super().__init__()
        self.readout = readout
        self.layers = nn.ModuleList(
            SessionLayer(
                dim, num_heads=num_heads, hidden=hidden, session_length=session_length, dropout=dropout
            )
            for _ in range(num_layers)
        )
        self.intent_type = nn.Parameter(torch.zeros(dim))
        self.of_gap = SmallEmbedding(NUM_LAG_BUCKETS, dim)
        self.norm_interest = nn.LayerNorm(dim)
        self.target_attention: nn.Module = (
            MultiHeadHistory(dim, num_heads=num_heads)
            if history_attention == "multi_head"
            else ActivationUnit(dim, hidden=activation_hidden)
        )
        self.combine = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim), nn.SiLU(), Dropout(dropout), nn.Linear(2 * dim, dim)
        )
        self.norm_user = nn.LayerNorm(dim)
        nn.init.zeros_(self.of_gap.weight)

    def forward(
        self,
        sequence: torch.Tensor,
        predicted_next: torch.Tensor,
        *,
        positions: torch.Tensor,
        session_start: torch.Tensor,
        gap: torch.Tensor | None,
        lag: torch.Tensor | None,
    ) -> torch.Tensor:
        """e_u at each of P positions.

        sequence: (B, N, D)   predicted_next: (B, P, D) x̂   positions: (B, P)   session_start: (B, N)
        gap: (B, P) bucket of the time from the last behaviour to the next one
        lag: (B, P, N) bucket of the time from each behaviour to the next one   -> (B, P, D)
        """
        length = sequence.shape[1]
        start = session_start.gather(1, positions)  # (B, P)
        session_interest = self._session_interest(
            sequence, predicted_next, positions=positions, session_start=session_start, gap=gap, lag=lag
        )
        history_interest = self.target_attention(
            sequence, session_interest, allowed=history_mask(start, length), lag=lag
        )
        combined = self.combine(torch.cat([history_interest, session_interest], dim=-1))  # Eq. 22
        return self.norm_user(session_interest + combined)

    def _session_interest(
        self,
        sequence: torch.Tensor,
        predicted_next: torch.Tensor,
        *,
        positions: torch.Tensor,
        session_start: torch.Tensor,
        gap: torch.Tensor | None,
        lag: torch.Tensor | None,
    ) -> torch.Tensor:
        """h_s (Eq. 19): the state of x̂, the last token of [session, x̂], or the average over all of them."""
        length = sequence.shape[1]
        every = torch.arange(length, device=sequence.device).expand(len(sequence), -1)  # (B, N)
        token_allowed = session_mask(session_start, every, length)  # (B, N, N)
        intent_allowed = session_mask(session_start.gather(1, positions), positions, length)  # (B, P, N)
        tokens, intent = sequence, predicted_next + self.intent_type
        if gap is not None:
            intent = intent + self.of_gap(gap)
        for number, layer in enumerate(self.layers, start=1):
            assert isinstance(layer, SessionLayer)
            key, value = layer.key_value(tokens)
            intent = layer.update_intent(
                intent, key, value, positions=positions, allowed=intent_allowed, lag=lag
            )
            if number < len(self.layers) or self.readout == "mean":
                tokens = layer.update_tokens(tokens, key, value, token_allowed)
        if self.readout == "mean":
            total = intent_allowed.to(tokens.dtype) @ tokens + intent  # (B, P, D)
            intent = total / (intent_allowed.sum(dim=-1, keepdim=True) + 1)
        return self.norm_interest(intent)
