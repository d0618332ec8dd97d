"""Scaled dot-product attention with the dropout of model/dropout.py on its weights."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from model.dropout import Dropout


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, dropout: Dropout
) -> torch.Tensor:
    """softmax(query · key / √d + bias) · value.

    query, key, value: (B, heads, N, d)
    bias: (..., N, N), added to the scores, or bool, true where a row may read a column -> (B, heads, N, d)
    """
    if not (dropout.training and dropout.p):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else scores + bias
    return dropout(scores.softmax(dim=-1)) @ value
