"""The engine on a real bundle: what it answers, and that it refuses a bundle that answers otherwise."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from index_builder.bundle import BundleError
from index_builder.candidates import recall_sequences
from model.batch import Sequence
from model.noise import request_key
from service.engine import Engine, EngineRequest, build_engine, choose_device
from service.settings import ServiceSettings


def request(
    user_id: str, items: list[int], top_k: int = 10, exclude: list[int] | None = None
) -> EngineRequest:
    times = np.arange(len(items)) + 1_600_000_000
    sequence = Sequence(np.array(items), times, 1_700_000_000)
    return EngineRequest(user_id, 3, sequence, top_k, np.array(exclude or [], dtype=np.int64))


def test_answers_are_those_of_the_shared_recall_code_by_catalogue_id(engine: Engine) -> None:
    asked = request("u", [3, 7, 9])
    answer = engine.recall([asked])[0]
    found = recall_sequences(
        engine.bundle.model, engine.bundle.index, [asked.sequence], [request_key(3, "u")], top_k=10
    )
    assert answer.candidates.item_ids == [f"i{item}" for item in found.item_index[0]]
    assert answer.candidates.scores == pytest.approx(found.score[0].tolist())
    assert answer.batch_size == 1
    assert answer.tower_seconds > 0
    assert answer.search_seconds > 0


def test_a_batch_of_mixed_lengths_and_sizes_equals_its_members_alone(engine: Engine) -> None:
    asked = [
        request("a", [1], top_k=60),
        request("b", list(range(1, 30)), top_k=1),
        request("c", [5, 6], top_k=30, exclude=list(range(1, 50))),
        request("d", [5, 6], top_k=12, exclude=[]),
    ]
    together = engine.recall(asked)
    for one, answer in zip(asked, together, strict=True):
        alone = engine.recall([one])[0]
        assert answer.candidates.item_ids == alone.candidates.item_ids
        assert answer.candidates.scores == pytest.approx(alone.candidates.scores, abs=1e-5)
    assert [len(answer.candidates.item_ids) for answer in together] == [60, 1, 11, 12]


def test_warm_up_accepts_the_bundle_as_built(engine: Engine) -> None:
    engine.warm_up(8)


def test_warm_up_refuses_a_model_that_is_not_the_index_builders(engine: Engine) -> None:
    other = copy.deepcopy(engine.bundle.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    mixed = Engine(dataclasses.replace(engine.bundle, model=other), device="cpu")
    with pytest.raises(BundleError, match="canary"):
        mixed.warm_up(1)


@pytest.mark.parametrize("kind", ["auto", "eager", "exact"])
def test_warm_up_holds_every_tower_engine_to_the_canary(engine: Engine, kind: str) -> None:
    settings = ServiceSettings(bundles="", tower_engine=kind)
    build_engine(engine.bundle, device="cpu", settings=settings).warm_up(4)
    other = copy.deepcopy(engine.bundle.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.05 * torch.randn_like(parameter))  # another training run is further away
    mixed = dataclasses.replace(engine.bundle, model=other)
    with pytest.raises(BundleError, match="canary"):
        build_engine(mixed, device="cpu", settings=settings).warm_up(1)


def test_other_sampling_answers_otherwise_and_still_passes_the_canary(engine: Engine) -> None:
    settings = ServiceSettings(bundles="", num_inference_steps=1, sampler="ddim")
    quick = build_engine(engine.bundle, device="cpu", settings=settings)
    quick.warm_up(2)
    asked = [request("u", [3, 7, 9], top_k=60)]
    assert quick.recall(asked)[0].candidates.scores != pytest.approx(
        engine.recall(asked)[0].candidates.scores, rel=1e-4
    )


def test_a_tower_engine_that_cannot_be_had_names_setting_value_and_remedy(engine: Engine) -> None:
    settings = ServiceSettings(bundles="", num_inference_steps=9)
    with pytest.raises(ValueError, match="num_inference_steps must be at most num_steps = 4, got 9"):
        build_engine(engine.bundle, device="cpu", settings=settings)


def test_a_nan_in_the_user_tower_is_an_error_and_not_an_answer(engine: Engine) -> None:
    broken = copy.deepcopy(engine.bundle.model)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        Engine(dataclasses.replace(engine.bundle, model=broken), device="cpu").recall([request("u", [1])])


def test_an_absent_gpu_is_named() -> None:
    if torch.cuda.is_available():
        assert choose_device("auto") == "cuda"
    else:
        assert choose_device("auto") == "cpu"
        with pytest.raises(ValueError, match="device: cuda"):
            choose_device("cuda")
