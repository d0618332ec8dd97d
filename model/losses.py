"""L_KL and L_TOWER (Eq. 23, 24), the latter over all items or over sampled ones."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from model.batch_part import mean_of_whole
from model.linear_cross_entropy import linear_cross_entropy
from model.seen_items import SeenPairs

MAX_FULL_SOFTMAX_ITEMS = 60_000
"""Above it the softmax is sampled by default. Up to here all items, taken in pieces, cost no more than 8,192
of them: .14 and .15 s for 800 targets of 50,000 items, d = 64, one core with bfloat16."""

MOST_CATEGORIES = 2**24
"""Of torch.multinomial."""


def kl_loss(predicted_drift: torch.Tensor, drift: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error between ẑ_0 and z_0 over real positions (Eq. 23: both are means of Gaussians).

    predicted_drift, drift: (B, N, D)   mask: (B, N) bool   -> scalar
    """
    error = (predicted_drift - drift).square().mean(dim=-1)  # (B, N)
    return mean_of_whole((error * mask).sum() / mask.sum().clamp(min=1), mask.sum())


def tower_loss(
    user_embedding: torch.Tensor,
    item_embeddings: torch.Tensor,
    target: torch.Tensor,
    seen: SeenPairs | None = None,
) -> torch.Tensor:
    """Softmax cross-entropy over every item (Eq. 24).

    user_embedding: (P, D), or (P, R, D) of whose routes an item's best score counts
    item_embeddings: (M, D)   target: (P,) long rows of item_embeddings
    seen: of each user the rows that the softmax leaves out, unless one is the target   -> scalar
    """
    return mean_of_whole(linear_cross_entropy(user_embedding, item_embeddings, target, seen), len(target))


def sampled_tower_loss(
    user_embedding: torch.Tensor,
    item_embeddings: torch.Tensor,
    target: torch.Tensor,
    negative: torch.Tensor,
    log_expected_count: torch.Tensor,
    seen: SeenPairs | None = None,
) -> torch.Tensor:
    """Eq. 24 with its denominator estimated from shared negatives, for corpora too large for all items.

    Each negative's score is lowered by the log of how often it is expected in the sample (logQ
    correction; Bengio and Senécal 2008, Yi et al. 2019 [34]), which makes the estimate of the
    denominator unbiased whatever the sampling distribution. The target itself is certain, so it is
    not corrected, and a negative that equals the target is left out.
    user_embedding: (P, D) or (P, R, D)   target: (P,) rows   negative: (Q,) rows
    log_expected_count: (Q,)   seen: as of `tower_loss`   -> scalar
    """
    routes = user_embedding if user_embedding.ndim == 3 else user_embedding[:, None]  # (P, R, D)
    positive = (routes @ item_embeddings[target][:, :, None]).amax(dim=1)  # (P, 1)
    scores = (routes @ item_embeddings[negative].T).amax(dim=1) - log_expected_count  # (P, Q)
    excluded = negative[None, :] == target[:, None]  # (P, Q)
    if seen is not None:
        is_seen = torch.zeros(len(target), len(item_embeddings), dtype=torch.bool, device=scores.device)
        excluded |= is_seen.index_put(seen, torch.ones_like(seen[0], dtype=torch.bool))[:, negative]
    scores = scores.masked_fill(excluded, float("-inf"))
    logits = torch.cat([positive, scores], dim=1)  # (P, 1 + Q)
    return mean_of_whole(F.cross_entropy(logits, torch.zeros_like(target)), len(target))


def sample_negatives(probability: torch.Tensor, num_negatives: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw item rows with replacement and the log of each one's expected count.

    Of a batch in parts, every part draws the same: the negatives and q are those of the whole batch.
    probability: (M,) q, summing to 1   -> negative (Q,) long, log_expected_count (Q,) = ln(Q·q)
    """
    if len(probability) <= MOST_CATEGORIES:
        negative = torch.multinomial(probability, num_negatives, replacement=True)
    else:
        bounds = probability.double().cumsum(
            dim=0
        )  # (M,) item m has the draws below bounds[m], from the last
        draws = torch.rand(num_negatives, dtype=torch.double, device=bounds.device) * bounds[-1]
        negative = torch.searchsorted(bounds, draws, right=True).clamp(max=len(bounds) - 1)
    return negative, torch.log(num_negatives * probability[negative])
