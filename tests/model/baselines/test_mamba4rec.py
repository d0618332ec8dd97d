from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from model.baselines.mamba4rec import Mamba4Rec, Mamba4RecConfig
from model.baselines.selective_scan import SelectiveStateSpace, selective_scan
from model.batch import UNKNOWN_TIME, collate
from tests.model.baselines.tiny_models import make_sequences, shake, tiny_model, with_random_targets

_model = partial(tiny_model, Mamba4Rec)


def test_two_steps_of_the_scan_by_hand() -> None:
    """One channel, two states: h₁ = Δx·B; h₂ = exp(ΔA)·h₁ + Δx·B; y = C·h."""
    y = selective_scan(
        torch.tensor([2.0, 3.0]).view(2, 1, 1),
        torch.tensor([0.5, 1.0]).view(2, 1, 1),
        torch.tensor([[-1.0, -2.0]]),
        torch.tensor([[[1.0, 4.0]], [[2.0, -1.0]]]),
        torch.tensor([[[1.0, 1.0]], [[10.0, 1.0]]]),
    )
    first = (0.5 * 2 * 1, 0.5 * 2 * 4)
    second = (math.exp(-1) * first[0] + 1 * 3 * 2, math.exp(-2) * first[1] + 1 * 3 * -1)
    assert y.flatten().tolist() == pytest.approx([first[0] + first[1], 10 * second[0] + second[1]])


def test_the_scan_is_the_sum_over_earlier_positions_that_the_recurrence_unrolls_to() -> None:
    """y_t = Σ_{j≤t} Σ_s C_ts·exp(A_s·Σ_{j<i≤t} Δ_i)·Δ_j·x_j·B_js, values and gradients."""
    length, dtype = 7, torch.float64
    inputs = [
        torch.randn(length, 3, 4, dtype=dtype),
        torch.rand(length, 3, 4, dtype=dtype),
        -torch.rand(4, 5, dtype=dtype),
        torch.randn(length, 3, 5, dtype=dtype),
        torch.randn(length, 3, 5, dtype=dtype),
    ]

    def unrolled(
        x: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor
    ) -> torch.Tensor:
        rows = []
        for t in range(length):
            row = x.new_zeros(3, 4)
            for j in range(t + 1):
                decay = torch.exp(delta[j + 1 : t + 1].sum(dim=0)[:, :, None] * a)  # (B, E, S)
                kept = (c[t][:, None] * decay * b[j][:, None]).sum(dim=-1)  # (B, E)
                row = row + kept * delta[j] * x[j]
            rows.append(row)
        return torch.stack(rows)

    gradients = []
    for scan in (selective_scan, unrolled):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        y = scan(*leaves)
        gradients.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs)


def test_convolution_by_hand() -> None:
    block = SelectiveStateSpace(1, state_dim=2, kernel_size=3, expansion=1)
    with torch.no_grad():
        block.kernel.copy_(torch.tensor([[100.0], [10.0], [1.0]]))
        block.kernel_bias.fill_(0.5)
    out = block._convolve(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1))
    assert out.flatten().tolist() == pytest.approx([1.5, 12.5, 123.5, 234.5])


def test_one_position_of_the_block_by_hand() -> None:
    """y = (Δ·x·B·C + D·x)·SiLU(gate) with x the SiLU of the convolved value; everything one number wide."""
    block = SelectiveStateSpace(1, state_dim=1, kernel_size=2, expansion=1)
    with torch.no_grad():
        block.of_input.weight.copy_(torch.tensor([[2.0], [-0.5]]))  # value, gate
        block.kernel.copy_(torch.tensor([[9.0], [0.5]]))
        block.kernel_bias.fill_(0.25)
        block.of_selection.weight.copy_(torch.tensor([[0.3], [0.7], [-1.1]]))  # Δ, B, C
        block.of_delta.weight.fill_(0.4)
        block.of_delta.bias.fill_(-0.2)
        block.skip.fill_(1.5)
        block.of_output.weight.fill_(3.0)

    def silu(x: float) -> float:
        return x / (1 + math.exp(-x))

    token = 1.2
    x = silu(0.5 * 2.0 * token + 0.25)
    delta = math.log1p(math.exp(0.4 * 0.3 * x - 0.2))
    y = delta * x * (0.7 * x) * (-1.1 * x) + 1.5 * x
    expected = 3.0 * y * silu(-0.5 * token)
    assert block(torch.tensor([[[token]]])).item() == pytest.approx(expected, rel=1e-5)


def test_steps_start_between_a_thousandth_and_a_tenth() -> None:
    bias = _model(embedding_dim=64).layers[0].block.of_delta.bias
    first = torch.nn.functional.softplus(bias.detach())
    assert 0.00099 < float(first.min()) < 0.003
    assert 0.05 < float(first.max()) < 0.101


def test_time_lag_reaches_the_embedding_and_an_unknown_request_time_is_trained() -> None:
    model = shake(_model(time_lag=True)).eval()
    (sequence,) = make_sequences([5])

    def embedding(request_time: int) -> torch.Tensor:
        return model.user_embedding(collate([sequence._replace(request_time=request_time)], max_length=6))

    last = int(sequence.timestamp[-1])
    assert not torch.allclose(embedding(last + 1), embedding(last + 10**6), atol=1e-3)
    assert bool(torch.isfinite(embedding(UNKNOWN_TIME)).all())


def test_training_with_more_layers_adds_the_input_back() -> None:
    """With the block silenced, one layer forgets its input and stacked layers keep it (the paper's rule)."""
    batch = with_random_targets(collate(make_sequences([6, 6]), max_length=6))
    for num_layers, keeps in ((1, False), (2, True)):
        model = _model(num_layers=num_layers)
        for layer in model.layers:
            torch.nn.init.zeros_(layer.block.of_output.weight)
        states = model.states(batch)
        assert (float(states.detach().std(dim=1).max()) > 0.1) == keeps


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="state_dim must be at least 1, got 0"):
        Mamba4RecConfig(state_dim=0)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        Mamba4RecConfig(dropout=1)
