"""The counter-based noise of `model.noise` inside a CUDA graph: the keys are read when the graph runs.

Drawn for several steps at once, into a buffer that the next steps overwrite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from model.engines.gpu.driver import Kernel
from model.engines.gpu.kernel_arguments import NoiseArguments
from model.engines.plan import ReversePlan
from model.engines.torch_noise import box_muller, philox

Drawing = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""drawing(keys (B,) int64, steps (S,) int32, out (S, B, N, D) float32) fills `out`"""

NOISE_THREADS = 256
_BUFFER_BYTES = 32 << 20  # stays in the L2 of a large GPU


class GraphNoise:
    """noise(step) -> (B, N, D) for the steps of a plan that draw, in the plan's order."""

    def __init__(
        self, keys: torch.Tensor, plan: ReversePlan, length: int, dim: int, drawing: Drawing
    ) -> None:
        """keys: (B,) int64 on the device, whose contents may change later"""
        steps = noise_steps(plan)
        step_bytes = 4 * len(keys) * length * dim
        at_once = max(1, min(len(steps), _BUFFER_BYTES // step_bytes))
        self._keys, self._drawing = keys, drawing
        self._chunk_of = {step: index // at_once for index, step in enumerate(steps)}
        self._place_of = {step: index % at_once for index, step in enumerate(steps)}
        self._chunks = [
            torch.tensor(steps[first : first + at_once], dtype=torch.int32, device=keys.device)
            for first in range(0, len(steps), at_once)
        ]
        self._normals = torch.empty(at_once, len(keys), length, dim, device=keys.device)
        self._drawn = -1

    def begin(self) -> None:
        """Forget what was drawn: a graph must hold all of its own drawing."""
        self._drawn = -1

    def __call__(self, step: int) -> torch.Tensor:
        chunk = self._chunk_of[step]
        if chunk != self._drawn:
            steps = self._chunks[chunk]
            self._drawing(self._keys, steps, self._normals[: len(steps)])
            self._drawn = chunk
        return self._normals[self._place_of[step]]


def noise_steps(plan: ReversePlan) -> list[int]:
    """The steps whose noise is drawn, in order: z_T's, then what is added."""
    added = [
        step for step, sigma in zip(plan.previous_steps, plan.sigma, strict=True) if sigma > 0 and step > 0
    ]
    return plan.steps[: int(plan.draws_start)] + added


def draw_by_torch(keys: torch.Tensor, steps: torch.Tensor, out: torch.Tensor) -> None:
    """In torch operations, about a hundred: for a machine that cannot compile noise.cu."""
    num_blocks = out[0, 0].numel() // 4
    for step, normals in zip(steps, out, strict=True):
        words = keys.new_empty(6, len(keys), num_blocks)
        box_muller(philox(keys, step.long().expand(len(keys)), words), normals.view(len(keys), num_blocks, 4))


def draw_by_kernel(kernel: Kernel) -> Drawing:
    """By noise.cu. Not run: needs a GPU."""

    def draw(keys: torch.Tensor, steps: torch.Tensor, out: torch.Tensor) -> None:
        num_blocks = out[0, 0].numel() // 4
        num_total = len(steps) * len(keys) * num_blocks
        arguments = NoiseArguments(
            keys=keys.data_ptr(),
            steps=steps.data_ptr(),
            normals=out.data_ptr(),
            num_samples=len(keys),
            num_blocks=num_blocks,
            num_total=num_total,
        )
        kernel.launch(-(-num_total // NOISE_THREADS), arguments)

    return draw
