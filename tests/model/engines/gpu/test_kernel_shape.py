"""What persistent.cu is compiled for, and where it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.engines.gpu.kernel_shape import LAYERS, SHARED_BYTES, KernelShape, kernel_shape
from tests.model.engines.conftest import tower_model

DEFAULT = KernelShape(64, 32, 48, 48, rows=50, causal=True)
ALL = (1 << len(LAYERS) - 1) - 1


def test_shared_memory_of_the_default_model_by_hand() -> None:
    """Zeros, two tables of 256 floats, rows of 16-bit numbers with 8 between them, weights of three taps."""
    rows = 64 * (72 + 2 * 40) + 32 * 2 * 56 + 16 * 2 * 56
    assert DEFAULT.shared_bytes == 128 + 2 * 256 * 4 + 2 * rows == 32_384
    weights = 2 * 3 * (64 * 32 + 32 * 48 + 2 * 48 * 48 + 96 * 48 + 80 * 32 + 32 * 64)
    assert replace(DEFAULT, resident=ALL).shared_bytes == 32_384 + weights
    assert replace(DEFAULT, samples=2).shared_bytes == 32_384 + 2 * rows


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90])
@pytest.mark.parametrize("samples", [1, 2])
def test_a_block_fits_the_gpu_and_keeps_what_it_can(capability: int, samples: int) -> None:
    shape = kernel_shape(tower_model(), capability, samples=samples)
    assert shape.shared_bytes <= SHARED_BYTES[capability]
    kept = [layer for layer in range(len(LAYERS)) if shape.resident >> layer & 1]
    for layer in {*range(len(LAYERS) - 1)} - set(kept):
        more = replace(shape, resident=shape.resident | 1 << layer)
        assert more.shared_bytes > SHARED_BYTES[capability], f"{LAYERS[layer]} would fit"
    assert (shape.resident == ALL) == (capability == 90 or (capability == 80 and samples == 1))


def test_the_condition_never_stays() -> None:
    assert not kernel_shape(tower_model(), 90).resident >> LAYERS.index("condition") & 1


def test_where_the_kernel_cannot_run_it_says_why() -> None:
    with pytest.raises(ValueError, match="max_length 2000 by embedding_dim 64 by 1 samples"):
        kernel_shape(tower_model(max_length=2000), 90)
    with pytest.raises(ValueError, match=r"bytes of shared memory, compute capability 7.5 has 65,536"):
        kernel_shape(tower_model(max_length=150), 75)
    for predicted_next in ("learned_token", "last_behaviour"):
        with pytest.raises(ValueError, match=f"{predicted_next}: there is no reverse process"):
            kernel_shape(tower_model(predicted_next=predicted_next), 90)
    with pytest.raises(ValueError, match=r"compute capability 6.1 is not one of"):
        kernel_shape(tower_model(), 61)
    with pytest.raises(ValueError, match=r"compute capability 7.5 has no bf16"):
        kernel_shape(tower_model(), 75, bf16=True)
