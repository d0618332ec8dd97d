"""One reverse diffusion, watched: it ends where serving ends, and only what generates x̂ has one."""

from __future__ import annotations

import pytest
import torch

from model.batch import SequenceBatch, collate
from model.data.dataset import leave_one_out
from model.generation_trace import trace_generation
from model.noise import fresh_noise
from model.registry import build_model
from model.t2diff import T2Diff
from tests.model.conftest import TINY, make_log


def _model(**settings: object) -> T2Diff:
    torch.manual_seed(0)
    model = build_model("t2diff", {**TINY, **settings}, 6)
    assert isinstance(model, T2Diff)
    return model.eval()


def _batch() -> SequenceBatch:
    questions = leave_one_out(make_log([[1, 2, 3, 4, 5]], num_items=6)).test
    return collate([questions.sequence(0)], max_length=6)


@pytest.mark.parametrize("drift_preparation", [False, True])
def test_it_ends_at_the_intent_that_serves(drift_preparation: bool) -> None:
    model, batch = _model(drift_preparation=drift_preparation), _batch()
    sequence = model.embed(batch.item_index)

    def noise() -> object:
        return fresh_noise(sequence.shape, sequence.device, torch.Generator().manual_seed(3))

    trace = trace_generation(model, batch, noise())  # type: ignore[arg-type]
    with torch.inference_mode():
        served = model.generate_next(sequence, batch.mask, steps=model.serving_steps(), noise=noise())  # type: ignore[arg-type]
    assert trace.steps == [4, 3, 2, 1]
    assert torch.allclose(trace.final, served[0, int(batch.length[0]) - 1])
    assert torch.allclose(trace.final, trace.predicted[-1], atol=1e-5)  # the last step takes ẑ_0 as it is


@pytest.mark.parametrize("predicted_next", ["learned_token", "last_behaviour", "regressed"])
def test_what_generates_nothing_is_refused(predicted_next: str) -> None:
    model, batch = _model(predicted_next=predicted_next), _batch()
    with pytest.raises(ValueError, match=f"x̂ is {predicted_next} in this model, not generated"):
        trace_generation(model, batch, fresh_noise((1, 4, 8), torch.device("cpu")))
