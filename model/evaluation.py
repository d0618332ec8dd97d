"""The yardstick: full ranking of every item for each held-out behaviour; Recall@K and MRR@K.

Items already seen are not masked (a behaviour may repeat), unless asked. An item whose score equals
the target's counts as ranked before it, so that a model that scores everything alike gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from model.batch import UNKNOWN_TIME, SequenceBatch, collate
from model.batch import Sequence as UserSequence
from model.counted import CountedTower
from model.data.dataset import EvaluationSet
from model.noise import Noise, fresh_noise
from model.two_tower import TwoTower

CUTOFFS = (2, 10, 20, 100)
"""2 and 20 are the paper's for ML-1M, 10 and 100 its for KuaiRand."""


def metric_names(cutoffs: Sequence[int] = CUTOFFS) -> list[str]:
    """recall_at_2, mrr_at_2, ..."""
    return [f"{kind}_at_{cutoff}" for cutoff in cutoffs for kind in ("recall", "mrr")]


def metrics_of_ranks(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Recall@K (share of targets among the first K) and MRR@K (mean of 1/rank, 0 beyond K).

    ranks: (Q,) the target's place, 1 being first
    """
    metrics = {}
    for cutoff in cutoffs:
        hit = ranks <= cutoff
        metrics[f"recall_at_{cutoff}"] = float(hit.mean())
        metrics[f"mrr_at_{cutoff}"] = float(np.where(hit, 1.0 / ranks, 0.0).mean())
    return metrics


@torch.inference_mode()
def rank_targets(
    model: TwoTower,
    evaluation: EvaluationSet,
    *,
    device: str = "cpu",
    batch_size: int = 256,
    seed: int = 0,
    mask_seen: bool = False,
    hide_request_time: bool = False,
    max_queries: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    generator: torch.Generator | None = None,
    rank: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> np.ndarray:
    """The rank of each target among all M items.

    mask_seen: rank only items the user has not seen   hide_request_time: do not tell when the target came
    max_queries: evaluate an evenly spread part only   on_batch: told the number of queries done
    generator: draws the diffusion noise in place of a new one of `seed`, and stands behind it afterwards
    rank: what to take for `rank_of`, when the model's item embeddings are a part of all items
    -> (Q,) int64, 1 being first
    """
    ranks = []
    for scores, target, sequences in score_in_batches(
        model,
        evaluation,
        chosen_queries(len(evaluation), max_queries),
        device=device,
        batch_size=batch_size,
        generator=generator or torch.Generator(device=device).manual_seed(seed),
        hide_request_time=hide_request_time,
        on_batch=on_batch,
    ):
        if mask_seen:
            mask_seen_items(scores, sequences, target)
        ranks.append((rank or rank_of)(scores, target).cpu().numpy())
    return np.concatenate(ranks)


def chosen_queries(count: int, max_queries: int | None) -> np.ndarray:
    """All of `count` queries, or `max_queries` of them evenly spread.   -> (Q,) int64"""
    if max_queries is not None and max_queries < count:
        return np.linspace(0, count - 1, max_queries).astype(int)
    return np.arange(count)


def score_in_batches(
    model: TwoTower,
    evaluation: EvaluationSet,
    queries: np.ndarray,
    *,
    device: str,
    batch_size: int,
    generator: torch.Generator,
    hide_request_time: bool,
    on_batch: Callable[[int], None] | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[UserSequence]]]:
    """Every item's score for each of `queries`, batch by batch; for callers in inference mode.

    -> scores (B, M), the targets' columns in them (B,), the sequences that were read. Each batch counts
    as done, and the model is put back into training mode, when the caller asks for what comes next.
    """
    was_training = model.training
    model.eval()
    score = _scorer_of(model)
    for first in range(0, len(queries), batch_size):
        chosen = queries[first : first + batch_size]
        sequences = [evaluation.sequence(int(query)) for query in chosen]
        if hide_request_time:
            sequences = [sequence._replace(request_time=UNKNOWN_TIME) for sequence in sequences]
        batch = collate(sequences, max_length=model.max_length).to(device)
        scores = score(batch, _noise_for(model, batch, generator))  # (B, M)
        target = torch.as_tensor(evaluation.target[chosen], dtype=torch.long, device=device) - 1
        yield scores, target, sequences
        if on_batch is not None:
            on_batch(first + len(chosen))
    model.train(was_training)


def score_items(user: torch.Tensor, items: torch.Tensor, metric: str) -> torch.Tensor:
    """Scores of all items, larger being better.

    user: (B, D), or (B, R, D) of whose routes an item's best score counts   items: (M, D)   -> (B, M)
    """
    best = None
    for route in (user if user.ndim == 3 else user[:, None]).unbind(dim=1):
        score = route @ items.T if metric == "inner_product" else -torch.cdist(route, items).square()
        best = score if best is None else torch.maximum(best, score)
    assert best is not None
    return best


def rank_of(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(B, M), (B,) -> (B,); NaN scores rank a target last."""
    of_target = scores.gather(1, target[:, None])
    not_behind = ~(scores < of_target)  # true for NaN as well
    return not_behind.sum(dim=1).clamp(min=1)


def mask_seen_items(scores: torch.Tensor, sequences: list[UserSequence], target: torch.Tensor) -> None:
    """Lower what a user has seen below everything else, except the target itself."""
    for row, sequence in enumerate(sequences):
        seen = torch.as_tensor(np.unique(sequence.item_index), dtype=torch.long, device=scores.device) - 1
        scores[row, seen[seen != target[row]]] = float("-inf")


def _scorer_of(model: TwoTower) -> Callable[[SequenceBatch, Noise | None], torch.Tensor]:
    """How `model` scores all M items for a batch: by its embeddings, or as a counted model says itself.

    The item embeddings are computed here, once.   -> score(batch, noise) -> (B, M), larger being better
    """
    if isinstance(model, CountedTower):
        return lambda batch, noise: model.score_all(batch)
    items = model.item_embeddings()  # (M, D)
    return lambda batch, noise: score_items(model.user_embeddings(batch, noise), items, model.metric)


def _noise_for(model: TwoTower, batch: SequenceBatch, generator: torch.Generator) -> Noise | None:
    """Fresh noise for one batch of a model that draws some: (B * R, N, D) a step."""
    if not model.num_steps:
        return None
    num_rows, length = batch.item_index.shape
    return fresh_noise(noise_shape(model, num_rows, length), generator.device, generator)


def noise_shape(model: TwoTower, num_rows: int, length: int) -> tuple[int, int, int]:
    """(B * R, N, D) of the noise of a batch of B rows padded to N."""
    return num_rows * model.num_routes, length, model.noise_dim
