"""T2Diff: a two-tower model whose user tower generates the next behaviour (Section 4; Eq. 9, 25).

The paper's Algorithm 1 hands the tower an x̂ made from the noised *true* next behaviour, which
inference cannot have; the tower learns to trust it and falls apart when serving. The default here
hands training the x̂ that serving makes, generated from pure noise. `predicted_next` chooses:
`generated` (default), `noised_truth` (Algorithm 1 as printed), `regressed` (the same U-Net without
noise, the control of what diffusion is worth), `last_behaviour` (no U-Net: the last behaviour, with one scale
and one shift learned for all), `learned_token` (not even that: the mixed-attention ablation).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from model.batch import UNKNOWN_TIME, SequenceBatch
from model.batch_part import draw_rows
from model.diffusion import diffuse, reverse, sample_steps, strided_steps
from model.drift import apply_drift, prepare_drift, slice_positions
from model.dropout import Dropout
from model.losses import kl_loss, sample_negatives, sampled_tower_loss, tower_loss
from model.mixed_attention import MixedAttention
from model.noise import Noise, fresh_noise
from model.noise_schedule import NoiseSchedule
from model.seen_items import SeenPairs, pairs_among, seen_pairs
from model.sessions import NUM_LAG_BUCKETS, lag_bucket, session_start
from model.t2diff_config import WITHOUT_UNET, T2DiffConfig
from model.two_tower import TwoTower
from model.unet1d import UNet1d


class T2Diff(TwoTower):
    """The user tower (diffusion, then mixed attention) and the item tower (the embedding table)."""

    splits_batches = True
    sampling_probability: torch.Tensor  # (M,) of each item as a negative
    seen_gap: torch.Tensor  # (NUM_LAG_BUCKETS,) which pauses before a target training has seen

    def __init__(self, config: T2DiffConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.max_length = config.max_length
        self.embedding_dim = config.embedding_dim
        self.num_routes = config.num_routes
        self.item_table = nn.Embedding(num_items + 1, config.embedding_dim, padding_idx=0)
        nn.init.normal_(self.item_table.weight, std=0.02)
        self.norm_item = nn.LayerNorm(config.embedding_dim, elementwise_affine=False)
        self.dropout = Dropout(config.dropout)
        self.attention = MixedAttention(
            config.embedding_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            hidden=config.feed_forward_hidden,
            activation_hidden=config.activation_hidden,
            session_length=config.session_length,
            readout=config.readout,
            history_attention=config.history_attention,
            dropout=config.dropout,
        )
        self.register_buffer("sampling_probability", torch.full((num_items,), 1.0 / num_items))
        self.register_buffer("seen_gap", torch.zeros(NUM_LAG_BUCKETS, dtype=torch.bool))
        if config.predicted_next in WITHOUT_UNET:
            self.intent_token = nn.Parameter(torch.zeros(config.embedding_dim))
            if config.predicted_next == "last_behaviour":
                self.last_scale = nn.Parameter(torch.ones(config.embedding_dim))
            return
        if config.predicted_next != "regressed":
            self.noise_dim = config.embedding_dim
            self.num_steps = config.num_steps
        self.schedule = NoiseSchedule(
            config.schedule,
            config.num_steps,
            beta_start=config.beta_start,
            final_alpha_cumprod=config.final_alpha_cumprod,
        )
        self.unet = UNet1d(
            config.embedding_dim,
            channels=config.unet_channels,
            step_channels=config.unet_step_channels,
            padding=config.unet_padding,
        )
        if config.intent_loss_weight:
            self.intent_scale = nn.Parameter(torch.tensor(0.2))

    # --- the contract ---------------------------------------------------------------------------

    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, D) e_u of the first route."""
        return self.user_embeddings(batch, noise)[:, 0]

    def user_embeddings(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, R, D) e_u after the last behaviour, for each of R x̂ generated from noise (Algorithm 2)."""
        sequence = self.embed(batch.item_index)
        positions = (batch.length - 1)[:, None].expand(-1, self.num_routes)  # (B, R)
        if self.config.predicted_next in WITHOUT_UNET:
            intent = slice_positions(self.learned_next(sequence), positions)
        elif self.config.predicted_next == "regressed":
            intent = slice_positions(self.regress_next(sequence, batch.mask), positions)
        else:
            each = sequence.repeat_interleave(self.num_routes, dim=0)  # (B * R, N, D)
            mask = batch.mask.repeat_interleave(self.num_routes, dim=0)
            predicted_next = self.generate_next(each, mask, steps=self.serving_steps(), noise=noise)
            intent = slice_positions(predicted_next, positions.reshape(-1, 1)).view(*positions.shape, -1)
        return self.attend(batch, sequence, intent, positions)

    def item_embeddings(self) -> torch.Tensor:
        """(M, D) e_i of item indices 1..M."""
        return self.item_table.weight[1:]

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """L_TOTAL = L_TOWER + λ·L_KL (Eq. 25); L_TOWER reaches x̂ as the two `_gradient` settings say."""
        assert batch.target is not None
        sequence = self.embed(batch.item_index)
        predicted_next, generator_loss = self._train_generator(batch, sequence.detach())
        tokens = self.dropout(sequence)
        if self.config.behaviour_gradient:  # its x_n becomes the tokens' own: dropout, gradient
            predicted_next = predicted_next + self._held(tokens - sequence.detach())[:, None]
        supervised = batch.target != 0  # (B, N)
        positions = torch.arange(sequence.shape[1], device=sequence.device).expand_as(batch.item_index)
        user = self.attend(  # R times N positions
            batch, tokens, predicted_next.flatten(1, 2), positions.repeat(1, self.num_routes)
        )
        user = user.unflatten(1, (self.num_routes, -1)).transpose(1, 2)  # (B, N, R, D)
        target = batch.target[supervised] - 1
        return self._softmax_loss(user[supervised], target, self._excluded(batch)) + generator_loss

    def observe_item_counts(self, counts: torch.Tensor) -> None:
        """Negatives are drawn in proportion to count^0.75, the usual middle between uniform and popular."""
        weight = counts.double().clamp(min=1) ** 0.75
        self.sampling_probability.copy_(weight / weight.sum())

    # --- the parts ------------------------------------------------------------------------------

    def embed(self, item_index: torch.Tensor) -> torch.Tensor:
        """x: unit-variance item embeddings, the scale on which diffusion noise means something.

        item_index: (B, N)   -> (B, N, D), zero at padding
        """
        return self.norm_item(self.item_table(item_index))

    def serving_steps(self) -> list[int]:
        """The steps of the reverse process that a request visits."""
        config = self.config
        return strided_steps(config.num_steps, config.num_inference_steps or config.num_steps)

    def training_steps(self) -> list[int]:
        """The few steps that make x̂ in training, the last being the one that serving ends with."""
        config = self.config
        return strided_steps(config.num_steps, min(config.num_training_steps, config.num_steps))

    def generate_next(
        self, sequence: torch.Tensor, mask: torch.Tensor, *, steps: list[int], noise: Noise | None
    ) -> torch.Tensor:
        """x̂ after every position, by reverse diffusion from noise (Algorithm 2); `steps` are visited.

        A gradient goes through the last step alone: the chain before it is what that step is given.
        -> (B, N, D)
        """
        noise = noise or fresh_noise(sequence.shape, sequence.device)
        left = len(steps)

        def approximate(drift: torch.Tensor, condition: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            nonlocal left
            left -= 1
            with torch.set_grad_enabled(torch.is_grad_enabled() and left == 0):
                return self.predict_drift(drift, condition, step, mask)

        drift = reverse(
            approximate, sequence, noise, schedule=self.schedule, steps=steps, sampler=self.config.sampler
        )
        return self.next_of(drift, sequence)

    def regress_next(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x̂ by one pass of the U-Net over nothing but the condition.   -> (B, N, D)"""
        step = torch.full((len(sequence),), self.config.num_steps, device=sequence.device)
        drift = self.predict_drift(torch.zeros_like(sequence), sequence, step, mask)
        return self.next_of(drift, sequence)

    def attend(
        self,
        batch: SequenceBatch,
        sequence: torch.Tensor,
        predicted_next: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """e_u at `positions`.   sequence: (B, N, D)   predicted_next: (B, P, D) x̂ there -> (B, P, D)"""
        start = session_start(
            batch.timestamp,
            session_length=self.config.session_length,
            session_gap_seconds=self.config.session_gap_seconds,
        )
        gap = lag = None
        if self.config.time_lag:
            gap, lag = self._lags(batch, positions)
        return self.attention(
            sequence,
            predicted_next,
            positions=positions,
            session_start=start,
            gap=gap,
            lag=lag,
        )

    def _lags(self, batch: SequenceBatch, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How long before the next behaviour the last one was, and every one.   -> (B, P), (B, P, N) buckets

        When the next behaviour comes is the request's time in serving and the target's in training,
        where it is hidden now and then so that a request without a time finds a trained answer. A pause
        longer or shorter than any in training is treated as unknown, for its bucket is untrained.
        """
        next_time = batch.next_time.gather(1, positions)  # (B, P)
        last_time = batch.timestamp.gather(1, positions)
        if self.training and batch.target is not None:
            hidden = draw_rows(
                lambda rows: torch.rand(rows, 1, device=positions.device) < self.config.request_time_dropout,
                len(positions),
            )
            next_time = next_time.masked_fill(hidden, UNKNOWN_TIME)
            supervised = batch.target.gather(1, positions) != 0
            self.seen_gap[lag_bucket(next_time, last_time)[supervised]] = True
        else:
            unseen = ~self.seen_gap[lag_bucket(next_time, last_time)]
            next_time = next_time.masked_fill(unseen, UNKNOWN_TIME)
        lag = lag_bucket(next_time[:, :, None], batch.timestamp[:, None, :])
        return lag_bucket(next_time, last_time), lag

    def _train_generator(
        self, batch: SequenceBatch, sequence: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Algorithm 1 on stopped gradients.   -> x̂ (B, R, N, D), what the generator loses"""
        config = self.config
        if config.predicted_next in WITHOUT_UNET:
            return self._routes(self.learned_next(sequence)), sequence.new_zeros(())
        following = self.embed(batch.next_item).detach()
        drift = config.drift_scale * self.diffused_of(sequence, following)
        known = batch.next_item != 0
        if config.predicted_next == "regressed":
            regressed = self.regress_next(sequence, batch.mask)
            loss = config.kl_weight * kl_loss(regressed, following, known)
            predicted_next = self._routes(regressed)
        else:
            step = sample_steps(len(drift), config.num_steps, drift.device)
            noise = fresh_noise(drift.shape, drift.device)
            noised_drift = diffuse(drift, step, noise(config.num_steps), self.schedule)
            predicted_drift = self.predict_drift(noised_drift, sequence, step, batch.mask)
            scale = config.drift_scale
            loss = config.kl_weight * kl_loss(predicted_drift / scale, drift / scale, known)
            if config.predicted_next == "noised_truth":
                return self._routes(self.next_of(predicted_drift.detach(), sequence)), loss
            with torch.set_grad_enabled(config.tower_gradient or config.intent_loss_weight > 0):
                each = self._routes(sequence).flatten(0, 1)
                mask = batch.mask.repeat_interleave(config.num_routes, dim=0)
                predicted_next = self.generate_next(
                    each, mask, steps=self.training_steps(), noise=None
                ).unflatten(0, (-1, config.num_routes))
        if config.intent_loss_weight:
            loss = loss + config.intent_loss_weight * self._intent_loss(predicted_next, batch)
        return predicted_next if config.tower_gradient else predicted_next.detach(), loss

    def _held(self, behaviours: torch.Tensor) -> torch.Tensor:
        """What x̂ holds of the behaviours themselves (Eq. 18).   (B, N, D) -> (B, N, D)"""
        config = self.config
        if config.predicted_next == "last_behaviour":
            return self.last_scale * behaviours
        if config.predicted_next == "learned_token" or not config.drift_preparation:
            return torch.zeros_like(behaviours)
        return behaviours

    def _intent_loss(self, predicted_next: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
        """x̂ as a user embedding of its own: the softmax over items, whose embeddings it does not move."""
        assert batch.target is not None
        supervised = batch.target != 0
        user = self.intent_scale * predicted_next.transpose(1, 2)[supervised]  # (P, R, D)
        target = batch.target[supervised] - 1
        return self._softmax_loss(
            user, target, self._excluded(batch), lambda items: self.norm_item(items.detach())
        )

    def _excluded(self, batch: SequenceBatch) -> SeenPairs | None:
        """What the softmax leaves out for each position that has a target, if anything."""
        assert batch.target is not None
        return seen_pairs(batch.item_index, batch.target != 0) if self.config.exclude_seen else None

    def _routes(self, values: torch.Tensor) -> torch.Tensor:
        """The same for every route.   (B, N, D) -> (B, R, N, D)"""
        return values[:, None].expand(-1, self.num_routes, -1, -1)

    def learned_next(self, sequence: torch.Tensor) -> torch.Tensor:
        """x̂ of the models without a U-Net, after every position.   (B, N, D) -> (B, N, D)"""
        learned = self.intent_token.expand_as(sequence)
        if self.config.predicted_next == "learned_token":
            return learned
        return apply_drift(learned, self.last_scale * sequence)

    def diffused_of(self, sequence: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """z_0, not yet scaled: the drifts (Eq. 11), or the behaviours that follow.

        sequence, following: (B, N, D), as in `prepare_drift`   -> (B, N, D)
        """
        return prepare_drift(sequence, following) if self.config.drift_preparation else following

    def next_of(self, drift: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
        """x̂ of a scaled drift (Eq. 18).   (B, N, D), (B, N, D) -> (B, N, D)"""
        drift = drift / self.config.drift_scale
        return apply_drift(drift, sequence) if self.config.drift_preparation else drift

    def predict_drift(
        self, noised_drift: torch.Tensor, sequence: torch.Tensor, step: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """ẑ_0 (Eq. 15); the U-Net answers on the embeddings' own scale.   -> (B, N, D)"""
        unet_mask = mask if self.config.unet_padding == "same" else None
        return self.config.drift_scale * self.unet(noised_drift, sequence, step, unet_mask)

    def _softmax_loss(
        self,
        user: torch.Tensor,
        target: torch.Tensor,
        seen: SeenPairs | None,
        embed: Callable[[torch.Tensor], torch.Tensor] = lambda items: items,
    ) -> torch.Tensor:
        """Over all items, or sampled ones.

        user: (P, R, D)   target: (P,) rows of item_embeddings   embed: their embeddings' (K, D)
        seen: of each user the rows that are excluded   -> scalar
        """
        if self.num_items <= self.config.max_full_softmax_items:
            return tower_loss(user, embed(self.item_embeddings()), target, seen)
        negative, log_expected_count = sample_negatives(self.sampling_probability, self.config.num_negatives)
        # only the rows that are scored are read, each once: a table in pieces has to fetch them
        scored, row = torch.unique(torch.cat([target, negative]), return_inverse=True)
        return sampled_tower_loss(
            user,
            embed(self.item_table(scored + 1)),
            row[: len(target)],
            row[len(target) :],
            log_expected_count,
            pairs_among(seen, scored) if seen is not None else None,
        )
