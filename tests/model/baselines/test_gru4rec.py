from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from model.baselines.gru4rec import GRU4Rec, GRU4RecConfig, bpr_loss, top1_loss
from model.batch import UNKNOWN_TIME, collate
from tests.model.baselines.tiny_models import learn, make_sequences, shake, tiny_model, with_following_targets

_model = partial(tiny_model, GRU4Rec)


@pytest.mark.parametrize("loss", ["top1", "bpr"])
def test_ranking_losses_put_each_target_before_the_other_examples_targets(loss: str) -> None:
    """Only those are negatives; from small weights TOP1 may stop where a negative has passed the target."""
    model = _model(loss=loss)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = with_following_targets(collate(make_sequences([6, 6, 5, 4]), max_length=6), last=[3, 9, 12, 25])
    assert batch.target is not None
    learn(model, batch, updates=400)
    targets = batch.target[batch.target != 0].unique()
    scores = model.user_embedding(batch) @ model.items.item_table(targets).T
    assert targets[scores.argmax(dim=1)].tolist() == [3, 9, 12, 25]


def test_two_steps_of_the_gates_by_hand() -> None:
    """One unit (Eq. 2-5); torch's z is the paper's 1 - z, and r multiplies U·h."""
    model = _model(num_items=2, embedding_dim=1, hidden=1).eval()
    w_r, w_z, w_n = 0.5, -0.3, 0.8
    u_r, u_z, u_n = 0.2, 0.7, -1.1
    with torch.no_grad():
        model.items.item_table.weight[1:, 0] = torch.tensor([2.0, -1.0])
        model.gru.weight_ih_l0[:, 0] = torch.tensor([w_r, w_z, w_n])
        model.gru.weight_hh_l0[:, 0] = torch.tensor([u_r, u_z, u_n])
        model.gru.bias_ih_l0.zero_()
        model.gru.bias_hh_l0.zero_()
        model.of_state.weight.fill_(1.0)
        model.of_state.bias.zero_()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    h, states = 0.0, []
    for x in (2.0, -1.0):
        update = 1 - sigmoid(w_z * x + u_z * h)
        candidate = math.tanh(w_n * x + sigmoid(w_r * x + u_r * h) * u_n * h)
        h = (1 - update) * h + update * candidate
        states.append(h)
    (sequence,) = make_sequences([2])
    batch = collate([sequence._replace(item_index=torch.tensor([1, 2]).numpy())], max_length=6)
    assert model.states(batch).flatten().tolist() == pytest.approx(states, abs=1e-6)


def test_ranking_losses_by_hand() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    positive = torch.tensor([2.0, 1.0])
    scores = torch.tensor([[2.0, 0.5, -1.0], [3.0, 1.0, 9.0]])
    negative = torch.tensor([[False, True, True], [True, False, False]])
    top1 = [
        (sigmoid(-1.5) + sigmoid(0.25) + sigmoid(-3.0) + sigmoid(1.0)) / 2,
        sigmoid(2.0) + sigmoid(9.0),
    ]
    bpr = [(-math.log(sigmoid(1.5)) - math.log(sigmoid(3.0))) / 2, -math.log(sigmoid(-2.0))]
    assert top1_loss(positive, scores, negative).item() == pytest.approx(sum(top1) / 2, rel=1e-5)
    assert bpr_loss(positive, scores, negative).item() == pytest.approx(sum(bpr) / 2, rel=1e-5)


def test_a_batch_with_one_target_only_gives_no_ranking_loss_and_no_nan() -> None:
    model = _model(loss="bpr")
    assert model.loss(torch.randn(3, 8), torch.tensor([5, 5, 5])).item() == 0.0


def test_time_lag_reaches_the_embedding() -> None:
    model = shake(_model(time_lag=True)).eval()
    (sequence,) = make_sequences([5])
    last = int(sequence.timestamp[-1])
    times = [last + 1, last + 10**6, UNKNOWN_TIME]
    batches = [collate([sequence._replace(request_time=time)], max_length=6) for time in times]
    soon, late, unknown = (model.user_embedding(batch) for batch in batches)
    assert not torch.allclose(soon, late, atol=1e-3)
    assert not torch.allclose(soon, unknown, atol=1e-3)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="loss must be one of full_softmax, top1, bpr, got 'hinge'"):
        GRU4RecConfig(loss="hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        GRU4RecConfig(hidden=0)
