"""The user tower's engines on a GPU: which there are, how far each is from float64, how fast each is.

Not run on a GPU: none was at hand when this was written. Tests run what the CPU can.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch

from loadtest.gpu_timing import Clock, medians
from model.batch import Sequence, SequenceBatch, collate
from model.engines.exact import ExactTower
from model.engines.gpu.gpu_tower import build_gpu_tower
from model.engines.gpu.graph import GraphTower
from model.engines.gpu.graph_noise import Drawing, GraphNoise
from model.engines.gpu.program import TowerProgram
from model.engines.gpu.request_layout import Request
from model.engines.interface import EagerTower, TowerEngine
from model.noise import fresh_noise, request_noise, route_keys
from model.t2diff import T2Diff

BATCH_SIZES = (1, 8, 32, 128, 256)
_CHECKED = 8
Embed = Callable[[SequenceBatch, list[int]], torch.Tensor]


class CompiledProgram(TowerProgram):
    """The graph engine with torch.compile's version of one plain step in place of the exact one."""

    def __init__(self, model: T2Diff, drawing: Drawing) -> None:
        super().__init__(model, drawing)
        device = model.item_table.weight.device
        plan = self.plan
        self._steps = [torch.tensor(step, device=device) for step in plan.steps]
        self._scalars = [
            torch.tensor(each, device=device)
            for each in zip(plan.of_predicted, plan.of_current, plan.sigma, strict=True)
        ]
        self._compiled = torch.compile(self._step, dynamic=False)

    def last_drift(self, request: Request, sequence: torch.Tensor, prepared: object) -> torch.Tensor:
        """As TowerProgram.last_drift."""
        assert isinstance(prepared, GraphNoise), "the compiled step is measured for generated x̂ only"
        prepared.begin()
        each = sequence.repeat_interleave(self.routes, dim=0)  # (B * R, N, D)
        mask = request.batch.mask.repeat_interleave(self.routes, dim=0)
        drift, none = prepared(self.plan.steps[0]), torch.zeros_like(each)
        for index, previous_step in enumerate(self.plan.previous_steps):
            noise = prepared(previous_step) if self.plan.sigma[index] > 0 else none
            drift = self._compiled(
                drift, each, mask, self._steps[index].expand(len(each)), self._scalars[index], noise
            )
        row = torch.arange(len(each), device=each.device)
        return drift[row, (request.length - 1).repeat_interleave(self.routes)]

    def _step(
        self,
        drift: torch.Tensor,
        sequence: torch.Tensor,
        mask: torch.Tensor,
        step: torch.Tensor,
        scalars: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """Eq. 15 and 17.   drift, sequence, noise: (B, N, D)   step: (B,)   scalars: (3,)"""
        unet_mask = mask if self.model.config.unet_padding == "same" else None
        predicted = self.model.unet(drift, sequence, step, unet_mask)
        return scalars[0] * predicted + scalars[1] * drift + scalars[2] * noise


def gpu_engines(model: T2Diff) -> tuple[dict[str, TowerEngine], dict[str, str]]:
    """The engines by name, and why the others cannot be had.   model: on the GPU"""
    engines: dict[str, TowerEngine] = {"counter": EagerTower(model), "exact": ExactTower(model)}
    absent = {}
    for name in ("graph", "persistent"):
        engine = build_gpu_tower(model, name)
        if engine.name == name:
            engines[name] = engine
        else:
            absent[name] = f"{engine.name} ran in its place, see the log"
    graph = engines.get("graph")
    if isinstance(graph, GraphTower) and model.config.predicted_next != "regressed":
        drawing = graph.program.drawing
        engines["compiled"] = GraphTower("compiled", CompiledProgram(model, drawing))
    return engines, absent


def plain_tower(model: T2Diff) -> Embed:
    """The model's own code with torch's noise, the cheapest way to run it plainly: what ratios are to."""
    device = model.item_table.weight.device

    def embed(batch: SequenceBatch, keys: list[int]) -> torch.Tensor:
        shape = (len(keys) * model.num_routes, batch.item_index.shape[1], model.noise_dim)
        with torch.no_grad():
            return model.user_embeddings(batch.to(device), fresh_noise(shape, device))

    return embed


def float64_errors(model: T2Diff, engines: dict[str, TowerEngine]) -> dict[str, float]:
    """The largest distance of a user embedding from float64's, as a share of its length, by engine."""
    choice = np.random.default_rng(1)
    lengths = [1, 2, *choice.integers(3, model.max_length, _CHECKED - 3).tolist(), model.max_length]
    batch = full_batch(model, lengths)
    keys = [2**63 + 11 * number for number in range(len(lengths))]
    expected = _float64(model, batch, keys)  # (B, R, D)
    errors = {}
    for name, engine in engines.items():
        found = engine.user_embeddings(batch, keys).double().cpu()
        errors[name] = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
    return errors


def tower_times(
    model: T2Diff, embeds: dict[str, Embed], clock: Clock, *, size: int, rounds: int
) -> dict[str, float]:
    """Milliseconds a sample of batches of `size` full sequences, by engine, all taking turns."""
    batch, keys = full_batch(model, [model.max_length] * size), list(range(size))
    calls = {name: lambda embed=embed: embed(batch, keys) for name, embed in embeds.items()}
    return {name: ms / size for name, ms in medians(calls, clock, rounds=rounds).items()}


def full_batch(model: T2Diff, lengths: Iterable[int]) -> SequenceBatch:
    """Sequences of random items whose times are known, on the host as the service has them."""
    choice = np.random.default_rng(0)
    sequences = [
        Sequence(
            choice.integers(1, model.num_items + 1, length),
            1_700_000_000 + np.cumsum(choice.integers(0, 86_400, length)),
            1_800_000_000,
        )
        for length in lengths
    ]
    return collate(sequences, max_length=model.max_length)


def _float64(model: T2Diff, batch: SequenceBatch, keys: list[int]) -> torch.Tensor:
    """The model's own code on the CPU in float64 under the noise of `keys`."""
    exact = copy.deepcopy(model).cpu().double()
    noise = request_noise(route_keys(keys, model.num_routes), batch.item_index.shape[1], model.embedding_dim)
    torch.set_default_dtype(torch.float64)  # what the model creates by itself, such as step embeddings
    try:
        with torch.inference_mode():
            return exact.user_embeddings(batch, lambda step: noise(step).double())
    finally:
        torch.set_default_dtype(torch.float32)
