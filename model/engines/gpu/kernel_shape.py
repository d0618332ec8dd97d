"""What persistent.cu is compiled for: the model's shape, and what of its weights stays in shared memory.

The sums here are those of the kernel, which refuses to compile when they differ (`T2_SHARED_BYTES`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.t2diff import T2Diff
from model.t2diff_config import WITHOUT_UNET

TILE = 16
TAPS = 3
WARPS = 16
LAYERS = (
    "encode_full",
    "encode_half",
    "encode_quarter",
    "bottleneck",
    "decode_half",
    "decode_full",
    "predict",
    "condition",
)
"""As numbered in the kernel. The condition's half of the first convolution is read once and never stays."""

SHARED_BYTES = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    103: 227 << 10,
    120: 99 << 10,
}
"""Shared memory that one block may have, by compute capability (CUDA C++ Programming Guide, Table 30)."""

_QUAD_BYTES = 16
_LANES = 32
_MAX_TURNS = 4  # 16 by 16 parts of the drift that a warp holds in registers, samples counted
_READ_MOST = (5, 0, 6, 4, 1, 2, 3)  # layers by how often a step reads each of their weights


@dataclass(frozen=True)
class KernelShape:
    """dim: D   full, half, quarter: channels   rows: the longest sequence   samples: a block's

    resident: bit l says that layer l's weights stay in shared memory
    """

    dim: int
    full: int
    half: int
    quarter: int
    rows: int
    causal: bool
    samples: int = 1
    resident: int = 0
    bf16: bool = False

    @property
    def padded(self) -> tuple[int, int, int, int]:
        """D and the channels in whole tiles."""
        return _padded(self.dim), _padded(self.full), _padded(self.half), _padded(self.quarter)

    @property
    def layer_quads(self) -> list[int]:
        """Weights of each layer, in 16 bytes."""
        return [
            columns // TILE * (TAPS * depth // TILE) * _LANES
            for depth, columns in zip(self._inputs(), self.outputs, strict=True)
        ]

    @property
    def outputs(self) -> list[int]:
        """Columns that each layer computes."""
        wide, full, half, quarter = self.padded
        return [full, half, quarter, quarter, half, full, wide, full]

    @property
    def table_size(self) -> int:
        """What one step says to all blocks, in floats."""
        return sum(self.outputs[:6])

    @property
    def shared_bytes(self) -> int:
        """What a block needs: zeros, two steps' tables, rows at every length, the weights that stay."""
        wide, full, half, quarter = self.padded
        halves = -(-self.rows // 2)
        quads = max(self.padded) // 8 + 2 * self.table_size // 4
        quads += self._rows_quads(wide, self.rows) + 2 * self._rows_quads(full, self.rows)
        quads += 2 * self._rows_quads(half, halves) + 2 * self._rows_quads(quarter, -(-halves // 2))
        quads += sum(size for layer, size in enumerate(self.layer_quads) if self.resident >> layer & 1)
        return _QUAD_BYTES * quads

    @property
    def macros(self) -> dict[str, int]:
        """What the kernel's source is compiled with."""
        macros = {
            "T2_DIM": self.dim,
            "T2_FULL": self.full,
            "T2_HALF": self.half,
            "T2_QUARTER": self.quarter,
            "T2_ROWS": self.rows,
            "T2_CAUSAL": int(self.causal),
            "T2_SAMPLES": self.samples,
            "T2_RESIDENT": self.resident,
            "T2_SHARED_BYTES": self.shared_bytes,
        }
        return macros | ({"T2_BF16": 1} if self.bf16 else {})

    def _inputs(self) -> list[int]:
        wide, full, half, quarter = self.padded
        return [wide, full, half, quarter, quarter + half, half + full, full, wide]

    def _rows_quads(self, channels: int, count: int) -> int:
        return self.samples * _padded(count) * (channels + 8) // 8


def kernel_shape(model: T2Diff, capability: int, *, samples: int = 1, bf16: bool = False) -> KernelShape:
    """The shape for `model` on a GPU, with as many weights kept as fit beside the rows.

    capability: 75 for 7.5 and so on   samples: a block's
    Raises ValueError, saying why, where the kernel cannot run.
    """
    if capability not in SHARED_BYTES:
        raise ValueError(f"compute capability {capability / 10} is not one of {sorted(SHARED_BYTES)}")
    if bf16 and capability < 80:
        raise ValueError(f"compute capability {capability / 10} has no bf16 products, 8.0 is the first")
    config = model.config
    if config.predicted_next in WITHOUT_UNET:
        raise ValueError(f"predicted_next is {config.predicted_next}: there is no reverse process")
    shape = KernelShape(
        config.embedding_dim,
        *config.unet_channels,
        rows=config.max_length,
        causal=config.unet_padding == "causal",
        samples=samples,
        bf16=bf16,
    )
    turns = -(-(_padded(shape.rows) // TILE * shape.padded[0] // TILE) // WARPS) * samples
    if turns > _MAX_TURNS:
        raise ValueError(
            f"max_length {shape.rows} by embedding_dim {shape.dim} by {samples} samples a block do not fit "
            "into a block's registers"
        )
    limit = SHARED_BYTES[capability]
    if shape.shared_bytes > limit:
        raise ValueError(
            f"max_length {shape.rows} and unet_channels {config.unet_channels} need {shape.shared_bytes:,} "
            f"bytes of shared memory, compute capability {capability / 10} has {limit:,}"
        )
    return _keep_weights(shape, limit)


def _keep_weights(shape: KernelShape, limit: int) -> KernelShape:
    for layer in _READ_MOST:
        larger = replace(shape, resident=shape.resident | 1 << layer)
        if larger.shared_bytes <= limit:
            shape = larger
    return shape


def _padded(count: int) -> int:
    return -(-count // TILE) * TILE
