"""The counter-based noise of `model.noise`, drawn on the model's device for several steps at once.

The same words bit for bit and the same normals to rounding. 64-bit integers hold the 32-bit words, as
torch has no unsigned products; in c1 and c3 rubbish stands above them until it would be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_BLOCKS_AT_ONCE = 16_384
"""Few enough that the words of a draw stay in a core's cache, many enough to hide the calls."""


class StepNoise:
    """noise(step) -> (B, N, D) float32, as `model.noise.request_noise`, for steps asked for in order.

    What is returned is overwritten by a later draw.
    """

    def __init__(
        self, keys: Sequence[int], steps: Sequence[int], length: int, dim: int, device: torch.device
    ) -> None:
        self._keys = torch.from_numpy(np.asarray(keys, dtype=np.uint64).view(np.int64)).to(device)  # (B,)
        self._steps = list(steps)
        self._shape = (len(keys), length, dim)
        num_blocks = length * dim // 4
        rows = max(1, _BLOCKS_AT_ONCE // num_blocks)
        self._steps_at_once = max(1, rows // len(keys))
        self._words = self._keys.new_empty(6, rows, num_blocks)  # kept: their pages cost more than their sums
        self._normals = torch.empty(self._steps_at_once * len(keys), num_blocks, 4, device=device)
        self._drawn: dict[int, torch.Tensor] = {}

    def __call__(self, step: int) -> torch.Tensor:
        if step not in self._drawn:
            first = self._steps.index(step)
            chunk = self._steps[first : first + self._steps_at_once]
            self._draw(torch.tensor(chunk, device=self._keys.device))
            self._drawn = {step: self._normals.view(-1, *self._shape)[at] for at, step in enumerate(chunk)}
        return self._drawn[step]

    def _draw(self, steps: torch.Tensor) -> None:
        key = self._keys.repeat(len(steps))  # (S * B,)
        step = steps.repeat_interleave(len(self._keys))
        rows = self._words.shape[1]
        for first in range(0, len(key), rows):
            part = slice(first, min(first + rows, len(key)))
            words = philox(key[part], step[part], self._words[:, : part.stop - first])
            box_muller(words, out=self._normals[part])


def philox(key: torch.Tensor, step: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    """Philox4x32-10 of counters (block, step, 0, 0).

    key, step: (R,)   words: (6, R, blocks) int64 to work in   -> four of (R, blocks), parts of `words`
    """
    k0, k1 = (key & _LOW)[:, None], (key >> 32 & _LOW)[:, None]
    c0, c1, c2, c3, product_0, product_1 = words.unbind()
    c0.copy_(torch.arange(words.shape[2], device=key.device))
    c1.copy_(step[:, None])
    c2.zero_()
    c3.zero_()
    for round_index in range(10):
        torch.mul(c0, _MULTIPLIERS[0], out=product_0)
        torch.mul(c2, _MULTIPLIERS[1], out=product_1)
        torch.bitwise_right_shift(product_1, 32, out=c0)
        c0.bitwise_xor_(c1).bitwise_xor_(k0 + round_index * _WEYL[0]).bitwise_and_(_LOW)
        torch.bitwise_right_shift(product_0, 32, out=c2)
        c2.bitwise_xor_(c3).bitwise_xor_(k1 + round_index * _WEYL[1]).bitwise_and_(_LOW)
        c1, product_1 = product_1, c1
        c3, product_0 = product_0, c3
    return [c0, c1.bitwise_and_(_LOW), c2, c3.bitwise_and_(_LOW)]


def box_muller(words: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Standard normals from words.   four of (R, blocks) -> out (R, blocks, 4) float32"""
    for pair in (0, 2):
        of_radius, of_angle = ((words[pair + at].float() + 0.5).mul_(2.0**-32) for at in (0, 1))
        radius = of_radius.log_().mul_(-2.0).sqrt_()
        angle = of_angle.mul_(float(np.float32(2.0 * math.pi)))
        torch.mul(radius, angle.cos(), out=out[..., pair])
        torch.mul(radius, angle.sin_(), out=out[..., pair + 1])
