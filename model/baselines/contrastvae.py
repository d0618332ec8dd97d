"""ContrastVAE (Wang, Zhang, Liu, Yang, Yu 2022): a sequence autoencoder with two views of one user.

One encoder gives the means μ of a latent z at each position, another its log variances; a decoder
turns z into a prediction of the next item. All three are causal transformers. Training draws two
views and maximises the ContrastELBO: both views' predictions, minus both KL terms to N(0, I) (raised
from 0 to `kl_weight`), plus the mutual information of the views, bounded by InfoNCE between users.
The second view is read with other dropout ("model augmentation") and, by default, its noise is
scaled by a learned α whose prior keeps it from shrinking to nothing ("variational augmentation").
Serving takes z = μ: nothing is drawn.

The paper draws z as μ + σ·ε. The published code, from which its results are, draws nothing in the first
view: z = μ + σ in training and serving, and in the second view of "model augmentation" μ + Dropout(σ).
`latent = "shifted"` is that form. The published KL weights of 0.2 to 0.4 are for it: they bring the
posterior near N(0, I), where drawn noise would hide what z tells, hence the smaller default here.

Departures: InfoNCE compares users by the mean of z over their behaviours, not its sum over padding too;
pre-norm transformers; full softmax, the paper's binary loss being `loss = "binary"`; no augmentation
of the data by crops, masks or reordering; the published width is 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from model.baselines.dense_tower import DenseTower
from model.baselines.encoder import Encoder, causal
from model.baselines.settings import check_at_least, check_choice, check_heads, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS
from model.small_embedding import SmallEmbedding

Loss = Literal["full_softmax", "binary"]
Augmentation = Literal["variational", "model"]
Latent = Literal["drawn", "shifted"]


@dataclass(frozen=True)
class ContrastVAEConfig:
    """Everything that shapes a ContrastVAE model."""

    embedding_dim: int = 64  # D
    max_length: int = 50
    num_layers: int = 1
    num_heads: int = 4
    feed_forward_hidden: int = 256
    dropout: float = 0.2
    augmentation: Augmentation = "variational"
    latent: Latent = "drawn"
    kl_weight: float = 0.01  # at 0.1, z soon tells nothing of the sequence
    kl_annealing_updates: int = 2_000  # until kl_weight is reached
    contrast_weight: float = 0.1
    temperature: float = 0.5  # of InfoNCE
    loss: Loss = "full_softmax"
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_choice(self, "augmentation", get_args(Augmentation))
        check_choice(self, "latent", get_args(Latent))
        check_at_least(self, 1, ("max_length", "num_layers", "num_heads", "kl_annealing_updates"))
        check_at_least(self, 0, ("kl_weight", "contrast_weight"))
        check_heads(self)
        check_share(self, ("dropout",))
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class ContrastVAE(DenseTower):
    """Two encoders, a decoder and the item table."""

    num_updates: torch.Tensor  # () how many batches have been trained on

    def __init__(self, config: ContrastVAEConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.config = config
        self.position_table = SmallEmbedding(config.max_length, config.embedding_dim)
        nn.init.normal_(self.position_table.weight, std=0.02)
        self.norm = nn.LayerNorm(config.embedding_dim)
        self.dropout = Dropout(config.dropout)
        self.of_mean, self.of_log_variance, self.decoder = (
            Encoder(
                config.embedding_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                hidden=config.feed_forward_hidden,
                dropout=config.dropout,
            )
            for _ in range(3)
        )
        if config.augmentation == "variational":
            self.logit_alpha = nn.Parameter(torch.zeros(()))  # α starts at 0.5
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) what is decoded after each position from the means, or from μ + σ."""
        mean, log_variance = self.encode(batch)
        if self.config.latent == "shifted":
            mean = mean + (log_variance / 2).exp()
        return self.decode(mean)

    def encode(self, batch: SequenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """μ and ln σ² of q(z | x) after each position.   -> two of (B, N, D)"""
        length = batch.item_index.shape[1]
        tokens = self.items.embed(batch.item_index) + self.position_table.weight[:length]
        tokens = self.dropout(self.norm(tokens))
        allowed = causal(length, tokens.device)
        return self.of_mean(tokens, allowed), self.of_log_variance(tokens, allowed)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """(B, N, D) z -> (B, N, D) what each position predicts"""
        return self.decoder(latent, causal(latent.shape[1], latent.device))

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The negative ContrastELBO, with the weights of its parts."""
        assert batch.target is not None
        if self.training:
            self.num_updates += 1
        supervised, real = batch.target != 0, batch.mask  # (B, N)
        target = batch.target[supervised]
        alpha = self.alpha()
        total = alpha_prior(alpha) if alpha is not None else 0.0
        kl_weight = self.config.kl_weight * (self.num_updates / self.config.kl_annealing_updates).clamp(max=1)
        views = []
        for spread in (self.first_spread, self.second_spread):
            mean, log_variance = self.encode(batch)  # twice: each view has its own dropout
            latent = mean + spread((log_variance / 2).exp())
            total = total + self.loss(self.decode(latent)[supervised], target)
            total = total + kl_weight * kl_to_standard_normal(mean, log_variance)[real].mean()
            views.append((latent * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True))
        return total + self.config.contrast_weight * info_nce(*views, temperature=self.config.temperature)

    def loss(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The softmax, or the paper's binary cross-entropy, over the items.   user: (P, D)   target: (P,)"""
        if self.config.loss == "binary":
            return self.items.binary_loss(user, target)
        return self.items.loss(user, target)

    def first_spread(self, deviation: torch.Tensor) -> torch.Tensor:
        """What the first view adds to μ.   deviation: (B, N, D) σ -> (B, N, D)"""
        return deviation if self.config.latent == "shifted" else deviation * torch.randn_like(deviation)

    def second_spread(self, deviation: torch.Tensor) -> torch.Tensor:
        """What the second view adds to μ.   deviation: (B, N, D) σ -> (B, N, D)"""
        alpha = self.alpha()
        if alpha is not None:
            return alpha * deviation * torch.randn_like(deviation)
        if self.config.latent == "shifted":
            return self.dropout(deviation)
        return deviation * torch.randn_like(deviation)

    def alpha(self) -> torch.Tensor | None:
        """The second view's noise as a share of σ, in (0, 1); None without variational augmentation."""
        return torch.sigmoid(self.logit_alpha) if self.config.augmentation == "variational" else None


def kl_to_standard_normal(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), summed over the last dimension.   (..., D) -> (...)"""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=-1)


def info_nce(first: torch.Tensor, second: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Each user's view must find the same user's other view among all views, by cosine.   (B, D) x 2 -> ()"""
    views = F.normalize(torch.cat([first, second]), dim=-1)  # (2B, D)
    similarity = (views @ views.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


def alpha_prior(alpha: torch.Tensor) -> torch.Tensor:
    """KL to the log-uniform prior of variational dropout, up to a constant (Kingma et al. 2015)."""
    return -(0.5 * alpha.log() + 1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3)
