from __future__ import annotations

import math

import torch

from model.baselines.encoder import Encoder, EncoderLayer, causal


def test_causal_allows_the_position_itself_and_what_came_before() -> None:
    assert causal(3, torch.device("cpu")).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_attention_by_hand() -> None:
    """One head, dimension 2: softmax(q·kᵀ/√2) over the allowed columns, added to the input."""
    layer = EncoderLayer(2, num_heads=1, hidden=1, dropout=0.0)
    identity = torch.eye(2)
    with torch.no_grad():
        layer.of_query_key_value.weight.copy_(torch.cat([identity, identity, identity]))
        layer.of_query_key_value.bias.zero_()
        layer.of_output.weight.copy_(identity)
        layer.of_output.bias.zero_()
        layer.feed_forward[3].weight.zero_()
        layer.feed_forward[3].bias.zero_()
    tokens = torch.tensor([[[3.0, 1.0], [-2.0, 4.0]]])  # LayerNorm makes them (1, -1) and (-1, 1)
    out = layer(tokens, causal(2, tokens.device))[0]
    weight = math.exp(-2 / math.sqrt(2)) / (math.exp(-2 / math.sqrt(2)) + math.exp(2 / math.sqrt(2)))
    second = (1 - weight) * torch.tensor([-1.0, 1.0]) + weight * torch.tensor([1.0, -1.0])
    assert torch.allclose(out[0], torch.tensor([4.0, 0.0]), atol=1e-4)
    assert torch.allclose(out[1], tokens[0, 1] + second, atol=1e-4)


def test_what_is_not_allowed_is_not_read() -> None:
    encoder = Encoder(8, num_layers=2, num_heads=2, hidden=16, dropout=0.0)
    tokens = torch.randn(2, 5, 8)
    changed = tokens.clone()
    changed[:, 3:] = torch.randn(2, 2, 8)
    for allowed in (causal(5, tokens.device), torch.tensor([[True, True, True, False, False]])):
        before, after = encoder(tokens, allowed), encoder(changed, allowed)
        assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
        assert not torch.allclose(before[:, 3:], after[:, 3:], atol=1e-2)
