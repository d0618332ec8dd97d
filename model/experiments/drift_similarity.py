"""Figure 4: how near the predicted ẑ_0 is to the true z_0 along the reverse process.

The paper shows it near 1 for drifts. Over all n positions it must be: n - 1 of them lie between behaviours
that its U-Net is shown. The last one alone is a prediction, so both are measured.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from model.batch import collate
from model.data.dataset import EvaluationSet
from model.drift import slice_positions
from model.noise import Noise, fresh_noise
from model.t2diff import T2Diff


@torch.inference_mode()
def drift_similarity(
    model: T2Diff, questions: EvaluationSet, *, device: str = "cpu", max_questions: int = 512, seed: int = 0
) -> dict[str, list[float]]:
    """cos(ẑ_0, z_0) at each step of Algorithm 2, from T down: its mean, and its first and ninth decile.

    -> {"step": [T, ..., 1], "all": [...], "all_low": ..., "all_high": ..., "last": ...}; `all` are all
    positions of all sequences, `last` the position before the target
    """
    model.eval()
    chosen = np.linspace(0, len(questions) - 1, min(max_questions, len(questions))).astype(int)
    generator = torch.Generator(device=device).manual_seed(seed)
    found: dict[str, list[torch.Tensor]] = {"all": [], "last": []}  # each (positions, T)
    for part in np.array_split(chosen, max(1, len(chosen) // 64)):
        batch = collate([questions.sequence(int(q)) for q in part], max_length=model.max_length).to(device)
        last = (batch.length - 1)[:, None]  # (B, 1)
        answer = torch.as_tensor(questions.target[part], dtype=torch.long, device=device)[:, None]
        batch = replace(batch, target=torch.zeros_like(batch.item_index).scatter(1, last, answer))
        sequence = model.embed(batch.item_index)
        drift = model.diffused_of(sequence, model.embed(batch.next_item))  # (B, N, D) z_0
        noise = fresh_noise(sequence.shape, sequence.device, generator)
        predictions = _predictions(model, sequence, batch.mask, noise)
        cosine = torch.stack([F.cosine_similarity(each, drift, dim=-1) for each in predictions], dim=-1)
        found["all"].append(cosine[batch.mask].cpu())
        found["last"].append(slice_positions(cosine, last)[:, 0].cpu())
    answer_of: dict[str, list[float]] = {"step": list(range(model.num_steps, 0, -1))}
    for name, parts in found.items():
        values = torch.cat(parts).numpy()  # (positions, T)
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
        for key, line in ((name, values.mean(axis=0)), (f"{name}_low", low), (f"{name}_high", high)):
            answer_of[key] = [round(float(value), 4) for value in line]
    return answer_of


def _predictions(
    model: T2Diff, sequence: torch.Tensor, mask: torch.Tensor, noise: Noise
) -> list[torch.Tensor]:
    """ẑ_0 of every step while x̂ is generated, on the scale of the U-Net's answers.   -> T of (B, N, D)"""
    predictions: list[torch.Tensor] = []
    watch = model.unet.register_forward_hook(lambda unet, inputs, output: predictions.append(output))
    try:
        model.generate_next(sequence, mask, steps=list(range(model.num_steps, 0, -1)), noise=noise)
    finally:
        watch.remove()
    return predictions
