"""Exact top-K over all items with exclusions, in operations that a CUDA graph can hold."""

from __future__ import annotations

import torch

from model.batch import PADDING_INDEX

_MAX_SCORE = torch.finfo(torch.float32).max


def masked_top_k(
    user: torch.Tensor, item_table: torch.Tensor, exclude: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best items of each user that are not excluded, best first; an item's score is its best route's.

    user: (B, R, D)   item_table: (M + 1, D), row 0 padding   exclude: (B, E) item indices, 0 for none
    top_k: at most M   -> scores (B, K), item indices (B, K); -inf and 0 where fewer are left
    """
    scores = (user.flatten(0, 1) @ item_table.T).unflatten(0, user.shape[:2]).amax(dim=1)  # (B, M + 1)
    scores.nan_to_num_(nan=-_MAX_SCORE, posinf=_MAX_SCORE, neginf=-_MAX_SCORE)
    scores[:, PADDING_INDEX].fill_(-torch.inf)
    scores.scatter_(1, exclude, -torch.inf)
    best, items = scores.topk(top_k, dim=1)
    return best, items.where(best > -torch.inf, PADDING_INDEX)
