"""What is measured of T2Diff alone: Figure 4's similarity, trust in x̂; and the cost of every model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.data.dataset import Split, leave_one_out
from model.evaluation import rank_targets
from model.experiments.drift_similarity import drift_similarity
from model.experiments.inference_time import ms_per_sample
from model.experiments.intent_trust import intent_trust
from model.experiments.measured_run import parameter_counts
from model.metrics import question_metrics
from model.registry import MODELS, build_model
from model.t2diff import T2Diff
from tests.model.conftest import TINY, make_log


def _model(num_items: int, **settings: object) -> T2Diff:
    torch.manual_seed(0)
    model = build_model("t2diff", {**TINY, **settings}, num_items)
    assert isinstance(model, T2Diff)
    return model


@pytest.mark.parametrize("drift_preparation", [False, True])
def test_a_unet_that_knows_the_answer_has_similarity_one(drift_preparation: bool) -> None:
    """Everyone walks 1, 2, 3, ...: x_{i+1}, or its drift from x_i, is right at every position and step."""
    split = leave_one_out(make_log([[1, 2, 3, 4, 5]] * 3, num_items=6))
    model = _model(6, drift_preparation=drift_preparation)
    walk = model.embed(torch.arange(1, 7))  # (6, D)

    class Knows(torch.nn.Module):
        def __init__(self, wrong_from: int) -> None:
            super().__init__()
            self.wrong_from = wrong_from

        def forward(
            self, noised: torch.Tensor, sequence: torch.Tensor, step: torch.Tensor, mask: object
        ) -> torch.Tensor:
            right = walk[1:] - walk[:-1] if drift_preparation else walk[1:]
            answer = right[None, : sequence.shape[1]].repeat(len(sequence), 1, 1)
            answer[:, self.wrong_from :] *= -1
            return answer

    model.unet = Knows(wrong_from=99)  # type: ignore[assignment]
    found = drift_similarity(model, split.test)
    assert found["step"] == [4, 3, 2, 1]
    assert found["all"] == found["last"] == found["all_low"] == pytest.approx([1.0] * 4)
    model.unet = Knows(wrong_from=3)  # type: ignore[assignment]  # test prefixes hold 4 behaviours
    found = drift_similarity(model, split.test)
    assert found["last"] == pytest.approx([-1.0] * 4)
    assert found["all"] == pytest.approx([0.5] * 4)


def test_trust_ranks_with_what_the_tower_is_handed(split: Split) -> None:
    model = _model(split.train.num_items)

    def read_only_the_intent(batch, sequence, predicted_next, positions):  # type: ignore[no-untyped-def]
        return predicted_next

    model.attend = read_only_the_intent  # type: ignore[method-assign]
    # score by the embeddings that x̂ lives among: the true item then scores highest
    model.item_embeddings = lambda: model.embed(torch.arange(1, model.num_items + 1))  # type: ignore[method-assign]
    found = intent_trust(model, split.test)
    assert found["truth"]["recall_at_2"] == 1
    assert found["random"]["recall_at_2"] < 0.3


def test_trust_in_generated_intent_is_the_models_own_recall(split: Split) -> None:
    model = _model(split.train.num_items)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    usual = question_metrics(rank_targets(model, split.test))
    found = intent_trust(model, split.test)["generated"]
    assert found == pytest.approx({name: values.mean() for name, values in usual.items()})


@pytest.mark.parametrize("name", MODELS)
def test_time_and_size_of_every_model(name: str, split: Split) -> None:
    model = build_model(name, TINY if name == "t2diff" else {}, split.train.num_items)
    assert ms_per_sample(model, split.test) > 0
    counts = parameter_counts(model)
    assert 0 <= counts["params"] <= counts["params_with_items"]


def test_parameters_of_the_default_are_those_of_the_command() -> None:
    counts = parameter_counts(build_model("t2diff", {}, 3_706))
    assert counts == {"params": 192_558, "params_with_items": 192_558 + 3_707 * 64}
    assert np.isclose(counts["params"] / 1e6, 0.187, atol=0.01)
