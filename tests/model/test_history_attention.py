from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from model.history_attention import ActivationUnit, MultiHeadHistory
from model.sessions import history_mask

D = 8


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
