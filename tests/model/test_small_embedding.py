from __future__ import annotations

import torch
from torch import nn

from model.small_embedding import SmallEmbedding


def test_values_and_gradients_are_nn_embeddings() -> None:
    small, plain = SmallEmbedding(5, 3), nn.Embedding(5, 3)
    plain.load_state_dict(small.state_dict())
    index = torch.randint(0, 5, (4, 6, 2))
    weight = torch.randn(4, 6, 2, 3)
    for table in (small, plain):
        (table(index) * weight).sum().backward()
    assert torch.equal(small(index), plain(index))
    assert small.weight.grad is not None
    assert plain.weight.grad is not None
    assert torch.allclose(small.weight.grad, plain.weight.grad, atol=1e-5)
