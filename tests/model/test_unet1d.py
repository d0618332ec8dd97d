from __future__ import annotations

import math

import pytest
import torch

from model.unet1d import Convolution, UNet1d, downsample, step_embedding, upsample


def _unet(padding: str = "causal") -> UNet1d:
    return UNet1d(4, channels=(8, 8, 8), step_channels=8, padding=padding)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("padding", "expected"), [("causal", [3.0, 32.0, 321.0]), ("same", [32.0, 321.0, 210.0])]
)
def test_convolution_weighs_three_neighbours(padding: str, expected: list[float]) -> None:
    """Kernel (100, 10, 1) over 3, 2, 1: causal reads two back and itself, same one back to one ahead."""
    convolution = Convolution(1, 1, padding)  # type: ignore[arg-type]
    with torch.no_grad():
        convolution.linear.weight.copy_(torch.tensor([[100.0, 10.0, 1.0]]))
        convolution.linear.bias.zero_()
    got = convolution(torch.tensor([[[3.0], [2.0], [1.0]]]))
    if padding == "causal":
        expected = [3.0, 32.0, 321.0]
    assert got.flatten().tolist() == expected


def test_step_embedding_by_hand() -> None:
    got = step_embedding(torch.tensor([2]), 4)
    assert got[0].tolist() == pytest.approx([math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)])


def test_causal_upsampling_hands_on_a_pair_only_when_it_is_complete() -> None:
    values = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    pairs = downsample(values)
    assert pairs.flatten().tolist() == [2.0, 4.0]
    assert upsample(pairs, "causal").flatten().tolist() == [0.0, 2.0, 2.0, 4.0]
    assert upsample(pairs, "same").flatten().tolist() == [2.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
def test_output_has_the_shape_of_the_drift(length: int) -> None:
    drift = torch.randn(2, length, 4)
    assert _unet()(drift, torch.randn(2, length, 4), torch.tensor([1, 2])).shape == drift.shape


def test_causal_unet_never_looks_ahead() -> None:
    """The gradient of position j reaches inputs 0..j and no others."""
    unet = _unet()
    drift, sequence = torch.randn(1, 11, 4, requires_grad=True), torch.randn(1, 11, 4, requires_grad=True)
    predicted = unet(drift, sequence, torch.tensor([3]))
    for position in range(11):
        grads = torch.autograd.grad(predicted[0, position].sum(), (drift, sequence), retain_graph=True)
        for grad in grads:
            assert bool((grad[0, position + 1 :] == 0).all())
            assert bool((grad[0, position] != 0).any())


def test_same_padding_looks_ahead_but_not_into_the_padding() -> None:
    unet = _unet("same")
    sequence = torch.randn(1, 8, 4, requires_grad=True)
    predicted = unet(torch.zeros(1, 8, 4), sequence, torch.tensor([1]), torch.ones(1, 8, dtype=torch.bool))
    grad = torch.autograd.grad(predicted[0, 2].sum(), sequence)[0]
    assert bool((grad[0, 3] != 0).any())
    drift, short = torch.randn(1, 5, 4), torch.randn(1, 5, 4)
    mask = torch.ones(1, 5, dtype=torch.bool)
    alone = unet(drift, short, torch.tensor([1]), mask)
    garbage = torch.full((1, 4, 4), 7.0)
    padded = unet(
        torch.cat([drift, garbage], 1),
        torch.cat([short, garbage], 1),
        torch.tensor([1]),
        torch.cat([mask, torch.zeros(1, 4, dtype=torch.bool)], 1),
    )
    assert torch.allclose(alone, padded[:, :5], atol=1e-6)


def test_unet_tells_the_steps_apart() -> None:
    drift, sequence = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    unet = _unet()
    assert not torch.allclose(
        unet(drift, sequence, torch.tensor([1])), unet(drift, sequence, torch.tensor([40]))
    )
