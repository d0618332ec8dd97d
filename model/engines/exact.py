"""The exact engine: plain PyTorch on any device, the arithmetic of the model without what is done twice.

Tested on a CPU. On CUDA: not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.batch import SequenceBatch
from model.drift import slice_positions
from model.engines.exact_unet import ExactUNet
from model.engines.interface import TowerEngine
from model.engines.plan import reverse_plan
from model.engines.torch_noise import StepNoise
from model.noise import route_keys
from model.sessions import history_mask, session_start
from model.t2diff import T2Diff


class ExactTower(TowerEngine):
    """T2Diff's user tower for its last position only, bound to the weights as they are now."""

    name = "exact"

    def __init__(self, model: T2Diff) -> None:
        super().__init__(model)
        self.model: T2Diff = model
        self.plan = reverse_plan(model)
        self.unet = ExactUNet(model.unet, self.plan) if self.plan.steps else None

    @torch.inference_mode()
    def user_embeddings(self, batch: SequenceBatch, keys: Sequence[int]) -> torch.Tensor:
        """(B, R, D), as the model's under the noise of `keys`."""
        model = self.model
        batch = batch.to(self.device)
        sequence = model.embed(batch.item_index)
        if self.unet is None:
            last = (batch.length - 1)[:, None].expand(-1, model.num_routes)  # (B, R)
            intent = slice_positions(model.learned_next(sequence), last)
        else:
            intent = self._generate(self.unet, sequence, batch, keys)
        return attend_last(model, batch, sequence, intent)

    def _generate(
        self, unet: ExactUNet, sequence: torch.Tensor, batch: SequenceBatch, keys: Sequence[int]
    ) -> torch.Tensor:
        """x̂ after the last behaviour, one a route.   -> (B, R, D)"""
        config = self.model.config
        num_routes = config.num_routes if self.plan.draws_start else 1
        each = sequence.repeat_interleave(num_routes, dim=0)  # (B * R, N, D)
        mask = batch.mask.repeat_interleave(num_routes, dim=0)
        draw = StepNoise(
            route_keys(keys, num_routes), self.plan.steps, sequence.shape[1], sequence.shape[2], self.device
        )
        drift = unet.generate(each, mask, draw)
        last = (batch.length - 1).repeat_interleave(num_routes)
        row = torch.arange(len(each), device=self.device)
        intent = drift[row, last] / config.drift_scale
        if config.drift_preparation:
            intent = intent + each[row, last]
        return intent.unflatten(0, (-1, num_routes)).expand(-1, config.num_routes, -1)


def attend_last(
    model: T2Diff, batch: SequenceBatch, sequence: torch.Tensor, intent: torch.Tensor
) -> torch.Tensor:
    """`T2Diff.attend` at the last position, over no more of the session than that position can feel.

    sequence: (B, N, D)   intent: (B, R, D)   -> (B, R, D)
    """
    config, attention = model.config, model.attention
    positions = (batch.length - 1)[:, None].expand(-1, intent.shape[1])  # (B, R)
    start = session_start(
        batch.timestamp,
        session_length=config.session_length,
        session_gap_seconds=config.session_gap_seconds,
    )
    gap, lag = model._lags(batch, positions) if config.time_lag else (None, None)
    columns = _window(model, batch)  # (B, W)
    first = columns[:, :1]
    session_interest = attention._session_interest(
        sequence.gather(1, columns[:, :, None].expand(-1, -1, sequence.shape[2])),
        intent,
        positions=positions - first,
        session_start=(start.gather(1, columns) - first).clamp(min=0),
        gap=gap,
        lag=None if lag is None else lag.gather(2, columns[:, None].expand(-1, lag.shape[1], -1)),
    )
    history_interest = attention.target_attention(
        sequence,
        session_interest,
        allowed=history_mask(start.gather(1, positions), sequence.shape[1]),
        lag=lag,
    )
    combined = attention.combine(torch.cat([history_interest, session_interest], dim=-1))
    return attention.norm_user(session_interest + combined)


def _window(model: T2Diff, batch: SequenceBatch) -> torch.Tensor:
    """The columns that reach the last position's session interest, through all layers.   -> (B, W)

    The intent reads the k tokens of its session; each layer before lets a token feel k - 1 more.
    """
    config = model.config
    num_updates = config.num_layers - (config.readout == "last")
    width = config.session_length + num_updates * (config.session_length - 1)
    width = min(width, batch.item_index.shape[1])
    first = (batch.length - width).clamp(min=0)
    return first[:, None] + torch.arange(width, device=first.device)
