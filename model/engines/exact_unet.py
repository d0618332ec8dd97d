"""Algorithm 2 by the same arithmetic as `model.diffusion.reverse`, with everything done once that can be.

Per request: half of the first convolution reads only the condition and is computed once, not at every
step. Per engine: what the steps say to the blocks and their coefficients (`plan`). Rows are kept
channels-last with their padding in place, so that a convolution reads them where they lie.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from model.engines.plan import ReversePlan
from model.unet1d import KERNEL_SIZE, Convolution, UNet1d

_silu = torch.ops.aten.silu.out
_PADDING = KERNEL_SIZE - 1


class ExactUNet:
    """The reverse loop over one U-Net, bound to its weights as they are now."""

    def __init__(self, unet: UNet1d, plan: ReversePlan) -> None:
        self.plan = plan
        self.causal = unet.padding == "causal"
        self.before = _PADDING if self.causal else _PADDING // 2
        self.channels = [block.convolution.linear.out_features for block in _levels(unet)]
        first = _kernel(unet.encode_full.convolution)  # (out, 2D, 1, 3)
        self.dim = first.shape[1] // 2
        self.of_drift = _channels_last(first[:, : self.dim])
        self.of_condition = _channels_last(first[:, self.dim :])
        self.encode_half = _kernel(unet.encode_half.convolution)
        self.encode_quarter = _kernel(unet.encode_quarter.convolution)
        self.bottleneck = _kernel(unet.bottleneck.convolution)
        self.decode_half = _kernel(unet.decode_half.convolution)
        self.decode_full = _kernel(unet.decode_full.convolution)
        self.predict = _kernel(unet.predict)
        self.predict_bias = unet.predict.linear.bias.detach()

    def generate(
        self, sequence: torch.Tensor, mask: torch.Tensor, draw: Callable[[int], torch.Tensor]
    ) -> torch.Tensor:
        """z_0, scaled.   sequence: (B, N, D)   mask: (B, N), read with `same` padding   -> (B, N, D)"""
        batch_size, length, _ = sequence.shape
        rows = length + -length % 4  # as in UNet1d
        buffers = self._buffers(batch_size, rows, sequence)
        masks = None if self.causal else _masks(mask, rows - length)
        drift = buffers["drift"][:, self.before : self.before + length]  # (B, N, D) z_t
        condition = buffers["drift"].clone()
        condition[:, self.before : self.before + length] = sequence
        if masks is not None:
            condition[:, self.before : self.before + length] *= masks[0][:, :length]
        condition = _convolve(condition, self.of_condition)  # (B, rows, full)
        plan = self.plan
        if plan.draws_start:
            drift.copy_(draw(plan.steps[0]))
        if masks is not None:
            drift.mul_(masks[0][:, :length])
        for index, previous_step in enumerate(plan.previous_steps):
            predicted = self._predict(buffers, condition, masks, index)[:, :length]
            drift.mul_(plan.of_current[index]).add_(predicted, alpha=plan.of_predicted[index])
            if plan.sigma[index] > 0:
                drift.add_(draw(previous_step), alpha=plan.sigma[index])
            if masks is not None and previous_step > 0:
                drift.mul_(masks[0][:, :length])
        return drift

    def _predict(
        self,
        buffers: dict[str, torch.Tensor],
        condition: torch.Tensor,
        masks: list[torch.Tensor] | None,
        index: int,
    ) -> torch.Tensor:
        """The U-Net at visited step `index` (Eq. 15).   -> (B, rows, D)"""
        _, half_width, quarter_width = self.channels

        def activate(name: str, values: torch.Tensor, out: torch.Tensor, level: int) -> None:
            values.add_(self.plan.step_tables[name][index])
            _silu(values, out=out)
            if masks is not None:
                out.mul_(masks[level])

        full = self._inside(buffers["full"])  # (B, rows, up + full): what decode_full reads
        half = self._inside(buffers["half"])  # (B, rows / 2, up + half)
        skip_full, skip_half = full[:, :, half_width:], half[:, :, quarter_width:]
        values = _convolve(buffers["drift"], self.of_drift).add_(condition)
        activate("encode_full", values, skip_full, 0)
        self._inside(buffers["to_half"]).copy_(skip_full[:, 1::2])
        activate("encode_half", _convolve(buffers["to_half"], self.encode_half), skip_half, 1)
        self._inside(buffers["to_quarter"]).copy_(skip_half[:, 1::2])
        quarter = self._inside(buffers["quarter"])
        activate("encode_quarter", _convolve(buffers["to_quarter"], self.encode_quarter), quarter, 2)
        values = _convolve(buffers["quarter"], self.bottleneck)
        activate("bottleneck", values, values, 2)
        self._upsample(values, half[:, :, :quarter_width])
        values = _convolve(buffers["half"], self.decode_half)
        activate("decode_half", values, values, 1)
        self._upsample(values, full[:, :, :half_width])
        decoded = self._inside(buffers["decoded"])
        activate("decode_full", _convolve(buffers["full"], self.decode_full), decoded, 0)
        return _convolve(buffers["decoded"], self.predict, self.predict_bias)

    def _upsample(self, values: torch.Tensor, out: torch.Tensor) -> None:
        """Each row twice; causal: one row later.   (B, rows / 2, C) -> out (B, rows, C)"""
        if self.causal:
            out[:, 1::2] = values
            out[:, 2::2] = values[:, :-1]
        else:
            out[:, 0::2] = values
            out[:, 1::2] = values

    def _inside(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[:, self.before : buffer.shape[1] - _PADDING + self.before]

    def _buffers(self, batch_size: int, rows: int, like: torch.Tensor) -> dict[str, torch.Tensor]:
        """Zeroed rows with padding, allocated once for all steps."""
        full, half, quarter = self.channels
        shapes = {
            "drift": (rows, self.dim),
            "full": (rows, half + full),
            "to_half": (rows // 2, full),
            "half": (rows // 2, quarter + half),
            "to_quarter": (rows // 4, half),
            "quarter": (rows // 4, quarter),
            "decoded": (rows, full),
        }
        return {
            name: like.new_zeros(batch_size, count + _PADDING, width)
            for name, (count, width) in shapes.items()
        }


def _levels(unet: UNet1d) -> list:
    return [unet.encode_full, unet.encode_half, unet.encode_quarter]


def _kernel(convolution: Convolution) -> torch.Tensor:
    """A matrix over three taps as the weight of a convolution.   (out, 3 * in) -> (out, in, 1, 3)"""
    weight = convolution.linear.weight.detach()
    return _channels_last(weight.unflatten(1, (KERNEL_SIZE, -1)).permute(0, 2, 1)[:, :, None])


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def _convolve(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Padded rows, channels last, as an image of height one.   (B, rows + 2, in) -> (B, rows, out)"""
    image = rows.unsqueeze(1).permute(0, 3, 1, 2)  # (B, in, 1, rows + 2)
    return F.conv2d(image, weight, bias).permute(0, 2, 3, 1).squeeze(1)


def _masks(mask: torch.Tensor, extra: int) -> list[torch.Tensor]:
    """As UNet1d._masks: (B, rows, 1), (B, rows / 2, 1), (B, rows / 4, 1)"""
    full = F.pad(mask, (0, extra))
    return [full[:, :: 2**level, None] for level in range(3)]
