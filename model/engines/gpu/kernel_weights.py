"""The weights of a U-Net as persistent.cu reads them: fragments of tensor-core products, lane by lane."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from model.engines.gpu.kernel_shape import TAPS, TILE, KernelShape
from model.engines.plan import BLOCKS, ReversePlan
from model.unet1d import UNet1d


def pack_weights(unet: UNet1d, shape: KernelShape) -> torch.Tensor:
    """All layers, one after the other, as 16-bit numbers.   -> (8 * quads,) int16"""
    dim, full, half, quarter = shape.dim, shape.full, shape.half, shape.quarter
    first = _taps(unet.encode_full.convolution.linear.weight)
    layers = [
        [first[:, :, :dim]],
        [_taps(unet.encode_half.convolution.linear.weight)],
        [_taps(unet.encode_quarter.convolution.linear.weight)],
        [_taps(unet.bottleneck.convolution.linear.weight)],
        list(_taps(unet.decode_half.convolution.linear.weight).split([quarter, half], dim=2)),
        list(_taps(unet.decode_full.convolution.linear.weight).split([half, full], dim=2)),
        [_taps(unet.predict.linear.weight)],
        [first[:, :, dim:]],
    ]
    number = torch.bfloat16 if shape.bf16 else torch.float16
    packed = torch.cat([_pack_layer(sources) for sources in layers]).to(number).view(torch.int16)
    assert len(packed) == 8 * sum(shape.layer_quads)
    return packed


def pack_tables(plan: ReversePlan, shape: KernelShape) -> torch.Tensor:
    """What each step says to each block, the blocks side by side.   -> (steps, table_size) float32"""
    tables = [
        F.pad(plan.step_tables[name].detach().float(), (0, columns - plan.step_tables[name].shape[1]))
        for name, columns in zip(BLOCKS, shape.outputs, strict=False)
    ]
    return torch.cat(tables, dim=1).contiguous()


def pack_scalars(plan: ReversePlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients (steps, 3) float32, and which noise (steps + 1,) int32, 0 where none is drawn."""
    coefficients = torch.tensor([plan.of_predicted, plan.of_current, plan.sigma], dtype=torch.float32)
    added = [step if sigma > 0 else 0 for step, sigma in zip(plan.previous_steps, plan.sigma, strict=True)]
    first = plan.steps[0] if plan.draws_start else 0
    return coefficients.T.contiguous(), torch.tensor([first, *added], dtype=torch.int32)


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(out, 3 * in) -> (out, 3, in)"""
    return weight.detach().float().unflatten(1, (TAPS, -1))


def _pack_layer(sources: list[torch.Tensor]) -> torch.Tensor:
    """Groups of 16 columns, then source, tap and depth of 16, then lanes of eight numbers.

    sources: (out, 3, in) each
    """
    groups = [_fragments(source) for source in sources]  # (groups, taps * depths, lanes, 8)
    return torch.cat(groups, dim=1).flatten()


def _fragments(source: torch.Tensor) -> torch.Tensor:
    """A lane, 4g + t, holds of columns g and g + 8 the depths 2t, 2t + 1, 2t + 8 and 2t + 9.

    source: (out, 3, in)   -> (groups, 3 * depths, 32, 8)
    """
    out, _, depth = source.shape
    source = F.pad(source, (0, -depth % TILE, 0, 0, 0, -out % TILE))
    # groups, column / 8, g, tap, depth / 16, depth / 8 % 2, t, depth % 2
    source = source.reshape(-1, 2, 8, TAPS, source.shape[2] // TILE, 2, 4, 2)
    source = source.permute(0, 3, 4, 2, 6, 1, 5, 7)  # groups, tap, depth / 16, g, t, column / 8, ...
    return source.reshape(source.shape[0], -1, 32, 8)
