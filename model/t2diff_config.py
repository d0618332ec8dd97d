"""The settings of T2Diff: every size, every choice where the paper leaves one, and what they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from model.history_attention import HistoryAttention
from model.losses import MAX_FULL_SOFTMAX_ITEMS
from model.mixed_attention import Readout
from model.noise_schedule import BETA_SHAPES
from model.unet1d import Padding

PredictedNext = Literal["generated", "noised_truth", "regressed", "last_behaviour", "learned_token"]
WITHOUT_UNET = ("last_behaviour", "learned_token")
Sampler = Literal["ddpm", "ddim"]


@dataclass(frozen=True)
class T2DiffConfig:
    """Everything that shapes a T2Diff model; stored with every checkpoint and bundle."""

    embedding_dim: int = 64  # D
    max_length: int = 50  # n
    session_length: int = 10  # k
    session_gap_seconds: int | None = None  # also break sessions at longer pauses
    num_steps: int = 50  # T
    schedule: str = "exp"
    beta_start: float = 0.002
    final_alpha_cumprod: float = 0.001  # ᾱ_T
    num_inference_steps: int | None = None  # None: all T
    sampler: Sampler = "ddpm"  # ddim: noise only at the start
    predicted_next: PredictedNext = "generated"
    num_routes: int = 1  # R draws of x̂, each a user embedding
    num_training_steps: int = 5  # reverse steps that make x̂ while training; all, where T has fewer
    drift_preparation: bool = True  # diffuse drifts (Eq. 11); without it the behaviours themselves
    drift_scale: float = 0.1  # what the drift is multiplied by before noise of variance 1 is added
    kl_weight: float = 1.0  # λ
    intent_loss_weight: float = 0.0  # of the softmax over items that x̂ itself is asked for
    tower_gradient: bool = True  # let L_TOWER train the U-Net through the last of them
    behaviour_gradient: bool = True  # let it reach x_n, too, within x̂ = x_n + drift, under dropout
    unet_channels: tuple[int, int, int] = (32, 48, 48)
    unet_step_channels: int = 32
    unet_padding: Padding = "causal"
    readout: Readout = "last"
    history_attention: HistoryAttention = "multi_head"
    time_lag: bool = True
    request_time_dropout: float = 0.1  # share of training sequences that hide when the next behaviour is
    num_layers: int = 2
    num_heads: int = 2
    feed_forward_hidden: int = 192
    activation_hidden: int = 32
    dropout: float = 0.2
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS  # above it, the softmax is sampled
    num_negatives: int = 8_192
    exclude_seen: bool = False  # from the training softmax, for a service that excludes it too

    def __post_init__(self) -> None:
        for name, choices in (
            ("predicted_next", get_args(PredictedNext)),
            ("sampler", get_args(Sampler)),
            ("unet_padding", get_args(Padding)),
            ("readout", get_args(Readout)),
            ("history_attention", get_args(HistoryAttention)),
            ("schedule", tuple(BETA_SHAPES)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in (
            "max_length",
            "session_length",
            "num_steps",
            "num_training_steps",
            "num_routes",
            "num_layers",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (self.num_inference_steps or 1) > self.num_steps:
            raise ValueError(
                "num_inference_steps must be at most num_steps = "
                f"{self.num_steps}, got {self.num_inference_steps}"
            )
        if self.embedding_dim % 4 or self.embedding_dim % self.num_heads:
            raise ValueError(
                f"embedding_dim must be a multiple of 4 and of num_heads ({self.num_heads}), "
                f"got {self.embedding_dim}"
            )
        for name in ("dropout", "request_time_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.drift_scale <= 0:
            raise ValueError(f"drift_scale must be above 0, got {self.drift_scale}")
