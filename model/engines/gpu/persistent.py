"""The reverse process as one kernel that keeps a sample on its processor for all steps, then attention.

What stands before and after the kernel is the graph engine's: all of it is one CUDA graph per bucket.
Not run on a GPU: none was at hand when this was written. Tests compile the kernel, run it and this program on
the CPU, and run both on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure
from typing import Protocol

import torch
from torch.nn import functional as F

from model.engines.gpu.graph_noise import draw_by_torch
from model.engines.gpu.kernel_arguments import ReverseArguments
from model.engines.gpu.kernel_shape import KernelShape
from model.engines.gpu.kernel_weights import pack_scalars, pack_tables, pack_weights
from model.engines.gpu.program import TowerProgram
from model.engines.gpu.request_layout import Request
from model.t2diff import T2Diff

FP16_TOLERANCE = 5e-3
"""Of a score, as a share of the user's largest. z_0 itself came within 1.4e-3 of its length on the CPU."""


class Launchable(Protocol):
    """A compiled kernel."""

    def launch(self, num_blocks: int, arguments: Structure) -> None:
        """Queue it behind what was queued before."""


class PersistentProgram(TowerProgram):
    """The reverse process in persistent.cu: fp16 products, fp32 sums and state."""

    def __init__(
        self,
        model: T2Diff,
        shape: KernelShape,
        kernel_of: Callable[[int], Launchable],
        *,
        num_processors: int,
    ) -> None:
        """shape: with one sample a block   kernel_of: the kernel that takes one or two, or ValueError"""
        super().__init__(model, draw_by_torch)
        device = model.item_table.weight.device
        coefficients, noise_steps = pack_scalars(self.plan)
        bias = model.unet.predict.linear.bias.detach()
        self._constants = {
            "weights": pack_weights(model.unet, shape).to(device),
            "tables": pack_tables(self.plan, shape).to(device),
            "predict_bias": F.pad(bias.float(), (0, shape.padded[0] - shape.dim)),
            "coefficients": coefficients.to(device),
            "noise_steps": noise_steps.to(device),
        }
        self._kernel_of, self._num_processors = kernel_of, num_processors

    def prepare(self, request: Request) -> object:
        """How many samples share a block, which hides one's waiting behind another's work, and its kernel."""
        samples = samples_a_block(len(request.keys), self._num_processors)
        try:
            return samples, self._kernel_of(samples)
        except ValueError:  # two do not fit
            return 1, self._kernel_of(1)

    def last_drift(self, request: Request, sequence: torch.Tensor, prepared: object) -> torch.Tensor:
        """As TowerProgram.last_drift, in one launch."""
        assert isinstance(prepared, tuple)
        samples, kernel = prepared
        sequence = sequence.contiguous()
        drift = sequence.new_empty(len(request.keys), sequence.shape[2])
        arguments = ReverseArguments(
            sequence=sequence.data_ptr(),
            length=request.length.data_ptr(),
            keys=request.keys.data_ptr(),
            drift=drift.data_ptr(),
            num_samples=len(drift),
            width=sequence.shape[1],
            routes=self.routes,
            num_steps=len(self.plan.steps),
            **{name: values.data_ptr() for name, values in self._constants.items()},
        )
        kernel.launch(-(-len(drift) // samples), arguments)
        return drift


def samples_a_block(num_samples: int, num_processors: int) -> int:
    """One while every sample has a processor to itself, else two."""
    return 1 if num_samples <= num_processors else 2
