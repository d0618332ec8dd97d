"""How much the tower trusts x̂: recall when it is handed the truth, a random item, and what it generates.

A tower that is nearly perfect with the truth and falls apart with its own x̂ has learned to rely on a
signal that serving does not have; one that is alike with all three has learned to ignore it.
"""

from __future__ import annotations

import numpy as np
import torch

from model.batch import collate
from model.data.dataset import EvaluationSet
from model.drift import slice_positions
from model.evaluation import rank_of, score_items
from model.metrics import question_metrics
from model.noise import fresh_noise
from model.t2diff import T2Diff

KINDS = ("truth", "random", "generated")


@torch.inference_mode()
def intent_trust(
    model: T2Diff, questions: EvaluationSet, *, device: str = "cpu", max_questions: int = 1_024, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Recall@K and MRR@K for each kind of x̂ at the last position; all else equal.

    -> kind -> metric -> value
    """
    model.eval()
    items = model.item_embeddings()
    generator = torch.Generator(device=device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    ranks: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    chosen = np.linspace(0, len(questions) - 1, min(max_questions, len(questions))).astype(int)
    for part in np.array_split(chosen, max(1, len(chosen) // 128)):
        batch = collate([questions.sequence(int(q)) for q in part], max_length=model.max_length).to(device)
        target = torch.as_tensor(questions.target[part], dtype=torch.long, device=device)  # (B,)
        other = torch.as_tensor(rng.integers(1, model.num_items + 1, len(part)), device=device)
        sequence = model.embed(batch.item_index)
        noise = fresh_noise(sequence.shape, sequence.device, generator)
        handed = {
            "truth": model.embed(target)[:, None].expand_as(sequence),
            "random": model.embed(other)[:, None].expand_as(sequence),
            "generated": model.generate_next(sequence, batch.mask, steps=model.serving_steps(), noise=noise),
        }
        for kind, predicted_next in handed.items():
            last = (batch.length - 1)[:, None]
            user = model.attend(batch, sequence, slice_positions(predicted_next, last), last)
            ranks[kind].append(rank_of(score_items(user, items, model.metric), target - 1))
    return {
        kind: {
            name: float(values.mean())
            for name, values in question_metrics(torch.cat(of_kind).cpu().numpy()).items()
        }
        for kind, of_kind in ranks.items()
    }
