"""persistent.cu as written, lane by lane on a CPU, against `model.diffusion.reverse` in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model.batch import SequenceBatch, collate
from model.engines.gpu.kernel_shape import kernel_shape
from model.t2diff import T2Diff
from tests.model.engines.conftest import error, ragged, sequences, tower_model
from tests.model.engines.gpu.conftest import EmulatedKernel, reference_drift, run_kernel

FP16, BF16 = 2e-3, 1.2e-2
"""Shares of the drift's length. Measured: up to 1.4e-3 and 6.6e-3; fp16 itself rounds by 4.9e-4."""

QUICK: dict[str, Any] = {"embedding_dim": 16, "unet_channels": (16, 16, 16), "num_steps": 6, "max_length": 20}
ODD: dict[str, Any] = {**QUICK, "embedding_dim": 20, "unet_channels": (10, 7, 23), "max_length": 23}
SETTINGS: list[dict[str, Any]] = [
    QUICK,
    {**QUICK, "unet_padding": "same"},
    {**QUICK, "unet_padding": "same", "max_length": 19},
    {**QUICK, "predicted_next": "regressed"},
    {**QUICK, "num_routes": 3},
    {**QUICK, "num_inference_steps": 3},
    {**QUICK, "num_inference_steps": 4, "sampler": "ddim"},
    ODD,
    {**ODD, "unet_padding": "same"},
    {**QUICK, "embedding_dim": 32, "unet_channels": (32, 48, 48), "max_length": 50, "num_steps": 4},
    {**QUICK, "max_length": 90, "unet_channels": (16, 32, 16), "num_steps": 2},  # warps take several turns
]


def _keys(batch: SequenceBatch) -> list[int]:
    return [2**63 + 11 * number for number in range(len(batch.length))]


def _run(
    emulate: Any, model: T2Diff, batch: SequenceBatch, *, backwards: bool = False, **changes: Any
) -> Any:
    shape = replace(kernel_shape(model, 90), **changes)
    kernel = EmulatedKernel(emulate, shape, backwards=backwards)
    return run_kernel(model, shape, kernel, batch, _keys(batch))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_kernel_equals_the_reference_on_a_ragged_batch(settings: dict[str, Any], emulate: Any) -> None:
    model = tower_model(**settings)
    batch = ragged(model)
    assert error(_run(emulate, model, batch), reference_drift(model, batch, _keys(batch))) < FP16


@pytest.mark.parametrize(
    "changes",
    [{"samples": 2}, {"resident": 0}, {"resident": 0b0101010}, {"backwards": True}],
    ids=str,
)
def test_neighbours_and_the_place_of_weights_and_the_order_of_threads_change_nothing(
    changes: dict[str, Any], emulate: Any
) -> None:
    model = tower_model(**QUICK)
    assert kernel_shape(model, 90).resident == 0b1111111
    batch = collate(sequences([1, 20, 3, 10, 11, 19, 17]), max_length=20)  # odd: the last of two is missing
    assert (_run(emulate, model, batch, **changes) == _run(emulate, model, batch)).all()


def test_a_sequence_alone_gives_what_it_gives_in_a_batch(emulate: Any) -> None:
    model = tower_model(**QUICK)
    made = sequences([5, 20, 8])
    together = _run(emulate, model, collate(made, max_length=20))
    alone = _run(emulate, model, collate(made[:1], max_length=20))
    assert (alone[0] == together[0]).all()


def test_bf16_products_are_coarser_but_the_same(emulate: Any) -> None:
    model = tower_model(**QUICK)
    batch = ragged(model)
    found = _run(emulate, model, batch, bf16=True)
    assert FP16 < error(found, reference_drift(model, batch, _keys(batch))) < BF16


def test_the_default_model_with_all_its_steps(emulate: Any) -> None:
    model = tower_model()
    batch = collate(sequences([50]), max_length=50)
    assert error(_run(emulate, model, batch), reference_drift(model, batch, _keys(batch))) < FP16


def test_the_reference_feels_what_the_kernel_is_tested_for() -> None:
    """Other noise and another condition move the drift far beyond the tolerances."""
    model = tower_model(**QUICK)
    batch = ragged(model)
    keys = _keys(batch)
    expected = reference_drift(model, batch, keys)
    assert error(reference_drift(model, batch, [key + 1 for key in keys]), expected) > 20 * FP16
    other = replace(batch, item_index=(batch.item_index + 1).where(batch.mask, 0))
    assert error(reference_drift(model, other, keys), expected) > 20 * FP16
