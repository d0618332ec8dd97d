"""One reverse diffusion watched step by step: what x̂ was taken for on its way from noise to intent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.batch import SequenceBatch
from model.diffusion import reverse
from model.noise import Noise
from model.t2diff import T2Diff
from model.t2diff_config import WITHOUT_UNET


@dataclass(frozen=True)
class GenerationTrace:
    """x̂ after the last behaviour, on the scale of `T2Diff.embed`.

    steps: the S steps visited, T first   noised: (S, D) what z_t stands for before each
    predicted: (S, D) what ẑ_0 of each stands for   final: (D,) x̂
    """

    steps: list[int]
    noised: torch.Tensor
    predicted: torch.Tensor
    final: torch.Tensor


@torch.inference_mode()
def trace_generation(model: T2Diff, batch: SequenceBatch, noise: Noise) -> GenerationTrace:
    """Algorithm 2 for a batch of one, by the plain loop.   noise: of a sequence of its length

    Raises ValueError for a model that does not generate x̂.
    """
    if model.config.predicted_next in (*WITHOUT_UNET, "regressed"):
        raise ValueError(f"x̂ is {model.config.predicted_next} in this model, not generated")
    sequence = model.embed(batch.item_index)
    last = int(batch.length[0]) - 1
    noised: list[torch.Tensor] = []
    predicted: list[torch.Tensor] = []

    def approximate(drift: torch.Tensor, condition: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        answer = model.predict_drift(drift, condition, step, batch.mask)
        noised.append(model.next_of(drift, condition)[0, last])
        predicted.append(model.next_of(answer, condition)[0, last])
        return answer

    steps = model.serving_steps()
    drift = reverse(
        approximate, sequence, noise, schedule=model.schedule, steps=steps, sampler=model.config.sampler
    )
    final = model.next_of(drift, sequence)[0, last]
    return GenerationTrace(steps, torch.stack(noised), torch.stack(predicted), final)
