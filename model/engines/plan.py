"""What of the reverse process does not depend on the user: computed once for an engine, not once a request.

Each visited step of Algorithm 2 comes down to two coefficients, a noise scale and, for each block of the
U-Net, one vector: what the step says to that block together with the bias of its convolution.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch

from model.noise_schedule import SAMPLERS
from model.t2diff import T2Diff
from model.t2diff_config import WITHOUT_UNET
from model.unet1d import step_embedding

BLOCKS = ("encode_full", "encode_half", "encode_quarter", "bottleneck", "decode_half", "decode_full")


@dataclass(frozen=True)
class ReversePlan:
    """The visited steps, descending, and what each needs. Empty without diffusion (`WITHOUT_UNET`).

    of_predicted, of_current, sigma: of the U-Net's output, of z_t and of the noise, one each a step
    draws_start: whether z_T is drawn; a regressor starts from zeros
    step_tables: block -> (steps, channels) what is added to its convolution, the bias included
    """

    steps: list[int]
    of_predicted: list[float]
    of_current: list[float]
    sigma: list[float]
    draws_start: bool
    step_tables: dict[str, torch.Tensor]

    @property
    def previous_steps(self) -> list[int]:
        """The step that each visited one leads to, whose number names the noise that is added."""
        return [*self.steps[1:], 0]


@torch.no_grad()
def reverse_plan(model: T2Diff) -> ReversePlan:
    """The plan of `model.generate_next`, or of `regress_next`, under the model's configuration."""
    config = model.config
    if config.predicted_next in WITHOUT_UNET:
        return ReversePlan([], [], [], [], False, {})
    if config.predicted_next == "regressed":
        steps, scalars = [config.num_steps], [(1.0, 0.0, 0.0)]
    else:
        steps = model.serving_steps()
        scalars = [
            SAMPLERS[config.sampler](model.schedule, step, previous)
            for step, previous in zip(steps, [*steps[1:], 0], strict=True)
        ]
    return ReversePlan(
        steps=steps,
        of_predicted=[config.drift_scale * of_predicted for of_predicted, _, _ in scalars],
        of_current=[of_current for _, of_current, _ in scalars],
        sigma=[math.sqrt(variance) for _, _, variance in scalars],
        draws_start=config.predicted_next != "regressed",
        step_tables=_step_tables(model, steps),
    )


def with_sampling(model: T2Diff, *, num_steps: int | None, sampler: str | None) -> T2Diff:
    """The same model, its weights shared, that visits `num_steps` steps by `sampler`; None keeps its own.

    Raises ValueError for a number of steps or a sampler that the model cannot have.
    """
    if num_steps is None and sampler is None:
        return model
    if num_steps is not None and num_steps < 1:
        raise ValueError(
            f"num_inference_steps must be at least 1, got {num_steps}; leave it out for the model's"
        )
    sampled = copy.copy(model)
    sampled.config = replace(
        model.config,
        num_inference_steps=num_steps or model.config.num_inference_steps,
        sampler=sampler or model.config.sampler,  # type: ignore[arg-type]
    )
    return sampled


def _step_tables(model: T2Diff, steps: list[int]) -> dict[str, torch.Tensor]:
    unet = model.unet
    step = torch.tensor(steps, device=model.item_table.weight.device)
    embedded = unet.of_step(step_embedding(step, unet.step_channels).to(model.item_table.weight.dtype))
    tables = {}
    for name in BLOCKS:
        block = getattr(unet, name)
        tables[name] = block.of_step(embedded) + block.convolution.linear.bias  # (steps, channels)
    return tables
