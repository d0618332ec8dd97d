from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from model.mixed_attention import ActivationUnit, MixedAttention, MultiHeadHistory
from model.sessions import history_mask, session_start

D = 8


def _attention(readout: str = "last", history_attention: str = "activation_unit") -> MixedAttention:
    torch.manual_seed(0)
    module = MixedAttention(
        D,
        num_layers=2,
        num_heads=2,
        hidden=16,
        activation_hidden=5,
        session_length=3,
        readout=readout,  # type: ignore[arg-type]
        history_attention=history_attention,  # type: ignore[arg-type]
        dropout=0.0,
    ).eval()
    for parameter in module.parameters():  # biases start at zero; make every part count
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def _run(
    module: MixedAttention, sequence: torch.Tensor, intent: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    timestamp = torch.arange(sequence.shape[1])[None].expand(len(sequence), -1)
    lag = torch.ones(*positions.shape, sequence.shape[1], dtype=torch.long)
    return module(
        sequence,
        intent,
        positions=positions,
        session_start=session_start(timestamp, session_length=3, session_gap_seconds=None),
        gap=torch.ones_like(positions),
        lag=lag,
    )


def test_target_attention_scores_equal_the_printed_formula() -> None:
    """Eq. 20 with the concatenation actually built, for every pair."""
    module = ActivationUnit(D, hidden=5)
    torch.nn.init.normal_(module.of_lag.weight)
    history, interest = torch.randn(2, 4, D), torch.randn(2, 3, D)
    lag = torch.randint(0, 32, (2, 3, 4))
    x = history[:, None].expand(-1, 3, -1, -1)
    h = interest[:, :, None].expand(-1, -1, 4, -1)
    hidden = module.first(torch.cat([x, x - h, x * h, h], dim=-1)) + module.of_lag(lag)
    expected = module.second(F.silu(hidden)).squeeze(-1)
    assert torch.allclose(module.scores(history, interest, lag), expected, atol=1e-5)


def test_history_interest_is_the_weighted_sum_of_the_history() -> None:
    """Eq. 21, with weights e^s / (Σ e^s + e^none); here all scores are 0, so each of 2 items gets 1/3."""
    module = ActivationUnit(D, hidden=5)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    history = torch.randn(1, 4, D)
    allowed = history_mask(torch.tensor([[2]]), 4)
    got = module(history, torch.randn(1, 1, D), allowed=allowed, lag=None)
    assert torch.allclose(got[0, 0], history[0, :2].sum(0) / 3, atol=1e-6)


def test_multi_head_history_by_hand() -> None:
    """One head, scores q·k/√2 + lag bias of 0 and ln 3 for two items, 0 for none: weights 1/5, 3/5, 1/5."""
    module = MultiHeadHistory(2, num_heads=1)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    module.of_key_value.weight.data[2:] = torch.eye(2)  # values are the items themselves
    module.of_lag.weight.data[7] = math.log(3)
    history = torch.tensor([[[5.0, 0.0], [0.0, 5.0], [100.0, 100.0]]])
    allowed = torch.tensor([[[True, True, False]]])
    lag = torch.tensor([[[0, 7, 7]]])
    got = module(history, torch.randn(1, 1, 2), allowed=allowed, lag=lag)
    assert got[0, 0].tolist() == pytest.approx([1.0, 3.0])
    module.of_query.bias.data[0] = module.of_key_value.weight.data[0, 0] = (
        1.0  # the first head asks for column 0
    )
    first, second, none = math.exp(5 / math.sqrt(2)), 3.0, 1.0
    got = module(history, torch.randn(1, 1, 2), allowed=allowed, lag=lag)
    assert got[0, 0].tolist() == pytest.approx(
        [5 * first / (first + second + none), 5 * second / (first + second + none)]
    )


@pytest.mark.parametrize("module", [ActivationUnit(D, hidden=5), MultiHeadHistory(D, num_heads=2)], ids=str)
def test_a_user_without_history_has_no_history_interest(module: torch.nn.Module) -> None:
    got = module(
        torch.randn(1, 4, D), torch.randn(1, 1, D), allowed=torch.zeros(1, 1, 4, dtype=torch.bool), lag=None
    )
    assert torch.equal(got, torch.zeros(1, 1, D))


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("history_attention", ["activation_unit", "multi_head"])
def test_every_position_computes_what_the_sequence_cut_there_would(
    readout: str, history_attention: str
) -> None:
    module = _attention(readout, history_attention)
    sequence, intent = torch.randn(1, 7, D), torch.randn(1, 7, D)
    dense = _run(module, sequence, intent, torch.arange(7)[None])
    for position in range(7):
        alone = _run(
            module,
            sequence[:, : position + 1],
            intent[:, position : position + 1],
            torch.tensor([[position]]),
        )
        assert torch.allclose(dense[:, position], alone[:, 0], atol=1e-5)


def test_mean_readout_averages_the_session_and_the_predicted_next() -> None:
    """Eq. 19 with a transformer that changes nothing: h_s is the norm of the plain average."""
    module = _attention("mean")
    for layer in module.layers:
        for part in (layer.of_output, layer.feed_forward[-1]):
            torch.nn.init.zeros_(part.weight)
            torch.nn.init.zeros_(part.bias)
    torch.nn.init.zeros_(module.intent_type)
    torch.nn.init.zeros_(module.of_gap.weight)
    sequence, intent = torch.randn(1, 5, D), torch.randn(1, 1, D)
    got = module._session_interest(
        sequence,
        intent,
        positions=torch.tensor([[4]]),
        session_start=torch.tensor([[0, 0, 0, 1, 2]]),
        gap=None,
        lag=None,
    )
    average = (sequence[0, 2:].sum(0) + intent[0, 0]) / 4
    assert torch.allclose(got[0, 0], module.norm_interest(average), atol=1e-5)


def test_the_session_ends_at_k_behaviours() -> None:
    """What lies before every session layer's reach acts through the history only, by target attention."""
    module = _attention()
    torch.nn.init.constant_(module.target_attention.none_score, 1e9)  # switch the history off
    sequence, intent = torch.randn(1, 9, D), torch.randn(1, 1, D)
    position = torch.tensor([[8]])
    before = _run(module, sequence, intent, position)
    changed = sequence.clone()
    changed[:, :4] = torch.randn(
        1, 4, D
    )  # two layers of sessions of three reach back to position 8 - 2 * 2 = 4
    assert torch.allclose(before, _run(module, changed, intent, position), atol=1e-5)
    changed[:, 6] = torch.randn(1, D)
    assert not torch.allclose(before, _run(module, changed, intent, position), atol=1e-3)


def test_user_embedding_listens_to_the_predicted_next() -> None:
    module = _attention()
    sequence, position = torch.randn(1, 5, D), torch.tensor([[4]])
    one = _run(module, sequence, torch.randn(1, 1, D), position)
    other = _run(module, sequence, torch.randn(1, 1, D), position)
    assert not torch.allclose(one, other, atol=1e-3)
