"""DiffuRec (Li, Sun, Li 2023): the next item's embedding is diffused, and a transformer restores it.

Forward: x_t = √ᾱ_t·e_{n+1} + √(1 - ᾱ_t)·ε. The approximator reads the sequence with the noised target
in every token, z_i = e_i + λ_i ⊙ (x_t + d_t) with d_t the embedding of step t and λ_i drawn from
N(δ, δ), and answers x̂_0 at the last position; training asks by cross-entropy over the items. Reverse:
from x_T drawn from N(0, I), x̂_0 and the posterior p(x_{t-1} | x_t, x̂_0) in turn; the last x̂_0 is the
user embedding. The β schedule is the published code's truncated linear one, T = 32.

One x_t for all tokens ties a pass to one target. `supervision = "last"` is that form: attention both
ways, the last position's target only (train it with one target per window). The default, "dense", is
a departure so that one pass trains every position as for other models here: attention is causal and
token i carries the noised e_{i+1}, its own target. Position j then sees noised forms of behaviours
that it sees anyway. Serving does the same: known next behaviours are diffused to the current step,
and only the last position's is generated.

Other departures: λ is its mean δ when serving, so that an answer depends on `noise` alone; the noise of
a reverse step has the posterior's variance, where the published code takes β_t; padding is never read,
which that code's mask lets happen; no dropout after a whole block; embeddings start with a deviation of
0.02, not 1; the reverse process may take strides (`num_inference_steps`); the softmax is sampled for
large corpora; the published width is 128. As in the published code there are no position embeddings,
and steps are drawn evenly: its sampler by loss is never told a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from model.baselines.dense_tower import last_state
from model.baselines.encoder import Encoder, causal
from model.baselines.item_table_tower import ItemTableTower
from model.baselines.settings import check_at_least, check_choice, check_heads, check_share
from model.batch import SequenceBatch
from model.diffusion import diffuse, reverse_step, sample_steps, strided_steps
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS
from model.noise import Noise, fresh_noise
from model.noise_schedule import NoiseSchedule
from model.unet1d import step_embedding

Supervision = Literal["dense", "last"]


@dataclass(frozen=True)
class DiffuRecConfig:
    """Everything that shapes a DiffuRec model."""

    embedding_dim: int = 64  # D
    max_length: int = 50
    num_steps: int = 32  # T
    num_inference_steps: int | None = None  # None: all T
    uncertainty: float = 0.001  # δ
    num_layers: int = 4
    num_heads: int = 4
    feed_forward_hidden: int = 256
    dropout: float = 0.1
    embedding_dropout: float = 0.3
    supervision: Supervision = "dense"
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "supervision", get_args(Supervision))
        check_at_least(self, 1, ("max_length", "num_steps", "num_layers", "num_heads"))
        check_at_least(self, 0, ("uncertainty",))
        check_heads(self)
        check_share(self, ("dropout", "embedding_dropout"))
        if self.embedding_dim % 4:
            raise ValueError(f"embedding_dim must be a multiple of 4, got {self.embedding_dim}")
        if not 1 <= (self.num_inference_steps or 1) <= self.num_steps:
            raise ValueError(
                f"num_inference_steps must be in 1..{self.num_steps} (num_steps), "
                f"got {self.num_inference_steps}"
            )


class DiffuRec(ItemTableTower):
    """The approximator (a transformer told of step and noised target) and the item table."""

    def __init__(self, config: DiffuRecConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.config = config
        self.noise_dim = config.embedding_dim
        self.num_steps = config.num_steps
        self.schedule = truncated_linear_schedule(config.num_steps)
        self.norm = nn.LayerNorm(config.embedding_dim)
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.of_step = nn.Sequential(
            nn.Linear(config.embedding_dim, 4 * config.embedding_dim),
            nn.SiLU(),
            nn.Linear(4 * config.embedding_dim, config.embedding_dim),
        )
        self.encoder = Encoder(
            config.embedding_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden=config.feed_forward_hidden,
            dropout=config.dropout,
        )

    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, D) the target generated from the noise of the last behaviour's position."""
        tokens = self.embed(batch.item_index)
        noise = noise or fresh_noise(tokens.shape, tokens.device)
        visited = strided_steps(
            self.config.num_steps, self.config.num_inference_steps or self.config.num_steps
        )
        drawn = noise(visited[0])  # (B, N, D)
        target = last_state(drawn, batch.length)  # (B, D) x_T
        for step, previous_step in zip(visited, [*visited[1:], 0], strict=True):
            step_of_each = torch.full((len(tokens),), step, device=tokens.device)
            noised = self._place(batch, target, step_of_each, drawn)
            predicted = last_state(self.approximate(batch, tokens, noised, step_of_each), batch.length)
            if previous_step > 0:
                drawn = noise(previous_step)
            target = reverse_step(
                target,
                predicted,
                last_state(drawn, batch.length) if previous_step > 0 else None,
                step=step,
                previous_step=previous_step,
                schedule=self.schedule,
            )
        return target

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """Cross-entropy of x̂_0 over the items, at every position with a target or at the last one."""
        assert batch.target is not None
        tokens = self.embed(batch.item_index)
        step = sample_steps(len(tokens), self.config.num_steps, tokens.device)
        following = self.items.embed(batch.next_item)  # (B, N, D)
        noised = diffuse(following, step, torch.randn_like(following), self.schedule)
        last = (batch.length - 1)[:, None]
        if self.config.supervision == "last":
            noised = last_state(noised, batch.length)[:, None].expand_as(tokens)
            supervised = torch.zeros_like(batch.mask).scatter(1, last, batch.target.gather(1, last) != 0)
        else:
            supervised = batch.target != 0
        predicted = self.approximate(batch, tokens, noised, step)
        return self.items.loss(predicted[supervised], batch.target[supervised])

    # --- the parts ------------------------------------------------------------------------------

    def embed(self, item_index: torch.Tensor) -> torch.Tensor:
        """e, what the approximator reads of the behaviours.   (B, N) -> (B, N, D)"""
        return self.norm(self.embedding_dropout(self.items.embed(item_index)))

    def approximate(
        self, batch: SequenceBatch, tokens: torch.Tensor, noised: torch.Tensor, step: torch.Tensor
    ) -> torch.Tensor:
        """x̂_0 at each position.   tokens, noised: (B, N, D) e, x_t   step: (B,) t   -> (B, N, D)"""
        uncertainty = torch.full_like(tokens, self.config.uncertainty)  # λ
        if self.training:
            uncertainty = uncertainty + self.config.uncertainty * torch.randn_like(tokens)
        of_step = self.of_step(step_embedding(step * 1_000 / self.config.num_steps, tokens.shape[-1]))
        mixed = tokens + uncertainty * (noised + of_step[:, None])
        if self.config.supervision == "last":
            allowed = batch.mask[:, None, None, :]
        else:
            allowed = causal(tokens.shape[1], tokens.device)
        return self.encoder(mixed, allowed)

    def _place(
        self, batch: SequenceBatch, target: torch.Tensor, step: torch.Tensor, drawn: torch.Tensor
    ) -> torch.Tensor:
        """The x_t of every token while serving.   target: (B, D) x_t   drawn: (B, N, D)   -> (B, N, D)"""
        if self.config.supervision == "last":
            return target[:, None].expand_as(drawn)
        known = diffuse(self.items.embed(batch.next_item), step, drawn, self.schedule)
        last = (batch.length - 1)[:, None, None].expand(-1, 1, target.shape[-1])
        return known.scatter(1, last, target[:, None])


def truncated_linear_schedule(num_steps: int) -> NoiseSchedule:
    """β from s/10⁴ + 0.01 to s/50 + 0.01 with s = 1000/T, or to s/10³ + 0.01 where that would pass 1."""
    scale = 1_000 / num_steps
    first, last = scale * 0.0001 + 0.01, scale * 0.02 + 0.01
    if last > 1:
        last = scale * 0.001 + 0.01
    betas = torch.linspace(first, last, num_steps, dtype=torch.float64)
    final = float(torch.prod(1 - betas))
    return NoiseSchedule("linear", num_steps, beta_start=first, final_alpha_cumprod=final)
