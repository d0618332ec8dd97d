"""How long an answer takes for one user, apart from the search among the items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from model.batch import SequenceBatch, collate
from model.compute_clock import compute_clock
from model.counted import CountedTower
from model.data.dataset import EvaluationSet
from model.noise import Noise, fresh_noise
from model.two_tower import TwoTower

BATCH_SIZE = 32
NUM_BATCHES = 8


@torch.inference_mode()
def ms_per_sample(model: TwoTower, questions: EvaluationSet, *, device: str = "cpu") -> float:
    """Median milliseconds of the user tower a sample, in batches of 32 real sequences, after one to warm up.

    On a CPU it is processor time, which a neighbour on the same machine disturbs less than the clock's;
    on a GPU the clock's, with the device waited for. The plain tower is timed, not a fused serving path;
    of a counted model, which may have no user embedding, the scoring of all items.
    """
    model.eval()
    answer = _answer(model)
    clock = compute_clock(device)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    chosen = np.linspace(0, len(questions) - 1, BATCH_SIZE * NUM_BATCHES).astype(int)
    batches = [
        collate([questions.sequence(int(question)) for question in part], max_length=model.max_length)
        for part in np.split(chosen, NUM_BATCHES)
    ]
    taken = []
    for batch in [batches[0], *batches]:
        batch = batch.to(device)
        wait()
        began = clock()
        noise = None
        if model.num_steps:
            num_rows, length = batch.item_index.shape
            shape = (num_rows * model.num_routes, length, model.noise_dim)
            noise = fresh_noise(shape, batch.item_index.device)
        answer(batch, noise)
        wait()
        taken.append(1_000 * (clock() - began) / BATCH_SIZE)
    return float(np.median(taken[1:]))


def _answer(model: TwoTower) -> Callable[[SequenceBatch, Noise | None], torch.Tensor]:
    if isinstance(model, CountedTower):
        return lambda batch, noise: model.score_all(batch)
    return model.user_embeddings
