"""Where the reverse process draws its Gaussian noise: fresh, given, or from a counter.

The service's noise is a pure function of (seed, user, step, position), so an answer depends neither
on who shares the batch nor on how it was padded. The counter-based generator is Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC '11) followed by Box-Muller: both
are simple enough to be repeated inside a fused CPU or GPU kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from model.batch_part import draw_rows

Noise = Callable[[int], torch.Tensor]
"""noise(step) -> (B, N, D) standard normals: for step T the start z_T, for step t the ε' of Eq. 17."""

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10
_ROUTE_KEY = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: the keys of routes lie far apart


def fresh_noise(
    shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None
) -> Noise:
    """Independent normals of shape (B, N, D) from torch's generator, for training and offline evaluation."""

    def draw(step: int) -> torch.Tensor:
        return draw_rows(
            lambda rows: torch.randn((rows, *shape[1:]), device=device, generator=generator), shape[0]
        )

    return draw


def request_noise(keys: Sequence[int], length: int, dim: int, device: torch.device | str = "cpu") -> Noise:
    """Normals that are a function of (key, step, position) alone; `keys` has one 64-bit key a request.

    `dim` must be a multiple of 4: a Philox block gives the four numbers of one position.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 for counter-based noise, got {dim}")
    key = np.asarray(keys, dtype=np.uint64)  # (B,)

    def draw(step: int) -> torch.Tensor:
        words = philox(key, step=step, num_blocks=length * dim // 4)  # (B, length * dim / 4, 4)
        normals = box_muller(words)
        return torch.from_numpy(normals.reshape(len(key), length, dim)).to(device)

    return draw


def request_key(seed: int, user_id: str) -> int:
    """The 64-bit key of a request: equal seeds give equal answers for one user, other users other noise."""
    digest = hashlib.blake2b(f"{seed}\x00{user_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def route_keys(keys: Sequence[int], num_routes: int) -> list[int]:
    """A key for each of a request's routes, its own for the first.   B keys -> B * R keys"""
    return [(key + route * _ROUTE_KEY) % 2**64 for key in keys for route in range(num_routes)]


def philox(key: np.ndarray, *, step: int, num_blocks: int) -> np.ndarray:
    """Philox4x32-10 of counters (block, step, 0, 0).   key: (B,) uint64 -> (B, num_blocks, 4) uint32"""
    block = np.arange(num_blocks, dtype=np.uint64)[None, :]  # (1, num_blocks)
    c0 = np.broadcast_to(block, (len(key), num_blocks)).copy()
    c1 = np.full_like(c0, step)
    c2 = np.zeros_like(c0)
    c3 = np.zeros_like(c0)
    k0 = (key & _LOW)[:, None]  # (B, 1)
    k1 = (key >> _SHIFT)[:, None]
    for round_index in range(_ROUNDS):
        round_k0 = (k0 + np.uint64(round_index * _WEYL_0 & 0xFFFFFFFF)) & _LOW
        round_k1 = (k1 + np.uint64(round_index * _WEYL_1 & 0xFFFFFFFF)) & _LOW
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0 = (product_1 >> _SHIFT) ^ c1 ^ round_k0
        c1 = product_1 & _LOW
        c2 = (product_0 >> _SHIFT) ^ c3 ^ round_k1
        c3 = product_0 & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def box_muller(words: np.ndarray) -> np.ndarray:
    """Standard normals from pairs of 32-bit words.   (..., 4) uint32 -> (..., 4) float32"""
    uniform = (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)  # in (0, 1]
    radius = np.sqrt(np.float32(-2.0) * np.log(uniform[..., 0::2]))
    angle = np.float32(2.0 * np.pi) * uniform[..., 1::2]
    normals = np.empty_like(uniform)
    normals[..., 0::2] = radius * np.cos(angle)
    normals[..., 1::2] = radius * np.sin(angle)
    return normals
