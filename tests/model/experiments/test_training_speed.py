from __future__ import annotations

import pytest
import torch

from model.data.dataset import Split
from model.dropout import Dropout
from model.experiments.training_speed import LOOPS, training_speed, with_plain_parts
from model.registry import build_model
from model.small_embedding import SmallEmbedding
from tests.model.conftest import TINY


def test_every_loop_trains_on_targets(split: Split) -> None:
    speeds = training_speed(split, "sasrec", updates=1, rounds=1, batch_size=2)
    assert set(speeds) == set(LOOPS)
    assert all(speed > 0 for speed in speeds.values())


def test_a_counted_model_is_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="'markov' is counted"):
        training_speed(split, "markov")


def test_plain_parts_are_pytorchs_and_change_no_answer() -> None:
    torch.manual_seed(0)
    model = build_model("t2diff", TINY, 20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = with_plain_parts(model)
    assert not any(isinstance(part, Dropout | SmallEmbedding) for part in plain.modules())
    after = plain.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
