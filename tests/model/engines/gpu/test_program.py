"""What the graphs hold, run on the CPU: the answers, and that a graph could hold it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.batch import SequenceBatch
from model.engines.gpu.graph_noise import draw_by_torch
from model.engines.gpu.kernel_shape import kernel_shape
from model.engines.gpu.persistent import PersistentProgram, samples_a_block
from model.engines.gpu.program import Answer, TowerProgram
from model.engines.gpu.request_layout import Request, RequestLayout
from tests.model.engines.conftest import SMALL, error, ragged, reference, tower_model
from tests.model.engines.gpu.conftest import EmulatedKernel

FP32, FP16 = 1e-4, 5e-3
BUCKET, NUM_EXCLUDED = 16, 64
SETTINGS: list[dict[str, Any]] = [
    {},
    {"unet_padding": "same"},
    {"num_routes": 3},
    {"predicted_next": "regressed"},
    {"predicted_next": "learned_token"},
    {"predicted_next": "last_behaviour"},
    {"drift_preparation": False},
    {"num_inference_steps": 3, "sampler": "ddim"},
    {"session_gap_seconds": 100_000, "readout": "mean"},
    {"history_attention": "multi_head"},
]


def _request(program: TowerProgram, batch: SequenceBatch, keys: list[int], exclude: Any = None) -> Request:
    layout = RequestLayout(BUCKET, program.model.max_length, program.routes, NUM_EXCLUDED)
    flat = torch.randint(1, 9, (layout.size,))  # what the last batch left
    layout.write(flat, batch, keys, exclude)
    return layout.parts(flat)


def _run(
    program: TowerProgram, batch: SequenceBatch, keys: list[int], *, exclude: Any = None, top_k: int = 0
) -> Answer:
    request = _request(program, batch, keys, exclude)
    with torch.inference_mode():
        return program.run(request, program.prepare(request), top_k)


def _keys(batch: SequenceBatch) -> list[int]:
    return [2**63 + 11 * number for number in range(len(batch.length))]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_padded_bucket_answers_as_the_reference(settings: dict[str, Any]) -> None:
    model = tower_model(**SMALL, **settings)
    batch = ragged(model)
    answer = _run(TowerProgram(model, draw_by_torch), batch, _keys(batch))
    assert answer.user.shape == (BUCKET, model.num_routes, model.embedding_dim)
    assert error(answer.user[: len(batch.length)], reference(model, batch, _keys(batch))) < FP32
    assert answer.user.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_routes": 3}, {"predicted_next": "regressed"}, {"drift_preparation": False}],
    ids=str,
)
def test_the_persistent_program_answers_as_the_reference(settings: dict[str, Any], emulate: Any) -> None:
    model = tower_model(**SMALL, max_length=20, **settings)
    batch = ragged(model)
    shape = kernel_shape(model, 90)

    def kernel_of(samples: int) -> EmulatedKernel:
        if samples > 1:
            raise ValueError("two do not fit")
        return EmulatedKernel(emulate, shape)

    program = PersistentProgram(model, shape, kernel_of, num_processors=4)
    answer = _run(program, batch, _keys(batch))
    assert error(answer.user[: len(batch.length)], reference(model, batch, _keys(batch))) < FP16


def test_a_second_request_in_the_same_memory_gets_its_own_noise() -> None:
    """A graph replays what was captured: noise that an earlier run left would be served for ever."""
    model = tower_model(**SMALL)
    program = TowerProgram(model, draw_by_torch)
    batch = ragged(model)
    request = _request(program, batch, [1] * 8)
    prepared = program.prepare(request)
    with torch.inference_mode():
        program.run(request, prepared, 0)
        request.keys[:8] = torch.tensor([7] * 8)
        user = program.run(request, prepared, 0).user[:8]
    assert error(user, reference(model, batch, [7] * 8)) < FP32


@pytest.mark.parametrize("num_routes", [1, 3])
def test_the_search_returns_the_best_items_that_are_not_excluded(num_routes: int) -> None:
    model = tower_model(**SMALL, num_routes=num_routes)
    batch = ragged(model)
    exclude = [None, np.array([5]), np.arange(1, 65), *[np.array([1, 300])] * 5]
    answer = _run(TowerProgram(model, draw_by_torch), batch, _keys(batch), exclude=exclude, top_k=20)
    assert answer.scores is not None
    assert answer.items is not None
    table = model.item_table.weight.detach()
    for row, out in enumerate(exclude):
        expected = (table @ answer.user[row].T).amax(dim=1)  # (M + 1,)
        expected[0] = -torch.inf
        expected[[] if out is None else out.tolist()] = -torch.inf
        best, items = expected.topk(20)
        assert answer.items[row].tolist() == items.tolist()
        assert torch.allclose(answer.scores[row], best, rtol=1e-5)


class _Capturable(TorchDispatchMode):
    """Fails for what a graph cannot hold: values read by the host, and tensors made from its numbers."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "lift_fresh",
        "unique",
        "item.",
        "is_nonzero",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} in a graph"
        if "aten.index.Tensor" in str(func):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), "in a graph"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_nothing_in_the_program_needs_the_host(settings: dict[str, Any]) -> None:
    model = tower_model(**SMALL, **settings)
    program = TowerProgram(model, draw_by_torch)
    batch = ragged(model)
    request = _request(program, batch, _keys(batch))
    prepared = program.prepare(request)
    with torch.inference_mode(), _Capturable():
        program.run(request, prepared, 10)


def test_the_check_of_the_host_sees_what_it_forbids() -> None:
    values = torch.ones(3)
    for sin in (lambda: values.sum().item(), lambda: values[values > 0], lambda: torch.tensor([1.0])):
        with pytest.raises(AssertionError, match="in a graph"), _Capturable():
            sin()


def test_a_processor_takes_two_samples_once_all_are_busy() -> None:
    assert [samples_a_block(count, 132) for count in (1, 132, 133, 256)] == [1, 1, 2, 2]
