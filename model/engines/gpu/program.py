"""What a GPU engine computes for a bucket of requests, in operations that a CUDA graph can hold.

Nothing here waits for the device, copies from the host or has a shape that depends on values. It runs on any
device, so that the CPU can check the arithmetic that a graph replays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.drift import slice_positions
from model.engines.exact import attend_last
from model.engines.exact_unet import ExactUNet
from model.engines.gpu.graph_noise import Drawing, GraphNoise
from model.engines.gpu.masked_search import masked_top_k
from model.engines.gpu.request_layout import Request
from model.engines.plan import reverse_plan
from model.t2diff import T2Diff


@dataclass(frozen=True)
class Answer:
    """user: (B, R, D)   scores, items: (B, K) of a search, or None"""

    user: torch.Tensor
    scores: torch.Tensor | None = None
    items: torch.Tensor | None = None


class TowerProgram:
    """T2Diff's user tower by the exact engine's arithmetic, and the search."""

    def __init__(self, model: T2Diff, drawing: Drawing) -> None:
        """drawing: how the noise is drawn"""
        self.model = model
        self.plan = reverse_plan(model)
        self.routes = model.num_routes if self.plan.draws_start else 1
        self.drawing = drawing
        self._unet = ExactUNet(model.unet, self.plan) if self.plan.steps else None

    def prepare(self, request: Request) -> object:
        """What `run` keeps for this request's memory, allocated before a graph is captured."""
        if not self.plan.draws_start:
            return None
        config = self.model.config
        return GraphNoise(request.keys, self.plan, config.max_length, config.embedding_dim, self.drawing)

    def run(self, request: Request, prepared: object, top_k: int) -> Answer:
        """top_k: 0 for the tower alone"""
        model = self.model
        sequence = model.embed(request.item_index)  # (B, N, D)
        if self.plan.steps:
            drift = self.last_drift(request, sequence, prepared) / model.config.drift_scale  # (B * R, D)
            intent = drift.unflatten(0, (-1, self.routes))  # (B, R, D)
            if model.config.drift_preparation:
                row = torch.arange(len(sequence), device=sequence.device)
                intent = intent + sequence[row, request.length - 1][:, None]
        else:
            intent = slice_positions(model.learned_next(sequence), (request.length - 1)[:, None])
        intent = intent.expand(-1, model.num_routes, -1)
        user = attend_last(model, request.batch, sequence, intent)
        if top_k == 0:
            return Answer(user)
        return Answer(user, *masked_top_k(user, model.item_table.weight, request.exclude, top_k))

    def last_drift(self, request: Request, sequence: torch.Tensor, prepared: object) -> torch.Tensor:
        """z_0, scaled, at the last behaviour of each sample.   sequence: (B, N, D)   -> (B * R, D)"""
        assert self._unet is not None
        each = sequence.repeat_interleave(self.routes, dim=0)  # (B * R, N, D)
        mask = request.batch.mask.repeat_interleave(self.routes, dim=0)
        draw = _no_noise
        if isinstance(prepared, GraphNoise):
            prepared.begin()
            draw = prepared.__call__
        drift = self._unet.generate(each, mask, draw)
        row = torch.arange(len(each), device=each.device)
        return drift[row, (request.length - 1).repeat_interleave(self.routes)]


def _no_noise(step: int) -> torch.Tensor:
    raise AssertionError(f"a regressor drew noise for step {step}")
