from __future__ import annotations

import pytest
import torch

from model.mixed_attention import MixedAttention
from model.sessions import session_start

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
