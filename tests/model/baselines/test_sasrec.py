from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from model.baselines.sasrec import SASRec, SASRecConfig
from model.batch import UNKNOWN_TIME, collate
from tests.model.baselines.tiny_models import make_sequences, shake, tiny_model

_model = partial(tiny_model, SASRec)


def test_attention_by_hand() -> None:
    """One head, one block, W = 1, the feed-forward silent: x_t + Σ_j softmax(q·k_j / √d + bias)·v_j."""
    model = _model(
        num_items=3, embedding_dim=2, num_layers=1, num_heads=1, positions="relative", time_lag=True
    ).eval()
    block = model.blocks[0]
    with torch.no_grad():
        model.items.item_table.weight[1:] = torch.tensor([[3.0, 1.0], [-1.0, 2.0], [0.0, 5.0]])
        block.of_query_key_value.weight.copy_(torch.eye(2).repeat(3, 1))
        block.of_query_key_value.bias.zero_()
        block.of_output.weight.copy_(torch.eye(2))
        block.of_output.bias.zero_()
        block.feed_forward[-1].weight.zero_()
        block.feed_forward[-1].bias.zero_()
        block.distance_bias.weight[:, 0] = torch.arange(6) / 10
        block.lag_bias.weight[:, 0] = -torch.arange(32) / 7
    (sequence,) = make_sequences([3])
    batch = collate(
        [sequence._replace(item_index=torch.tensor([1, 2, 3]).numpy(), timestamp=sequence.timestamp * 0)],
        max_length=6,
    )
    batch.timestamp[0] = torch.tensor([0, 3, 3])  # lags to the reader at 2: 3 s is bucket 3, 0 s bucket 1
    # LayerNorm over two numbers leaves their order: ±1; √D and ε do not matter
    value = [(1, -1), (-1, 1), (-1, 1)]
    query = value[2]
    score = [
        sum(a * b for a, b in zip(query, value[j], strict=True)) / math.sqrt(2) + (2 - j) / 10 - bucket / 7
        for j, bucket in enumerate([3, 1, 1])
    ]
    total = sum(math.exp(s) for s in score)
    attended = [
        sum(math.exp(s) / total * v[axis] for s, v in zip(score, value, strict=True)) for axis in (0, 1)
    ]
    scaled = [0.0, 5 * math.sqrt(2)]
    expected = torch.tensor([scaled[axis] + attended[axis] for axis in (0, 1)])
    model.norm = torch.nn.Identity()  # type: ignore[assignment]
    assert torch.allclose(model.states(batch)[0, 2], expected, atol=1e-4)


def test_time_lag_reaches_the_embedding_and_what_training_never_saw_is_unknown() -> None:
    model = shake(_model(time_lag=True)).eval()
    (sequence,) = make_sequences([5])

    def embedding(request_time: int) -> torch.Tensor:
        return model.user_embedding(collate([sequence._replace(request_time=request_time)], max_length=6))

    last = int(sequence.timestamp[-1])
    assert not torch.allclose(embedding(last + 1), embedding(last + 10**6), atol=1e-3)
    model.pause.seen.zero_()
    assert torch.equal(embedding(last + 10**6), embedding(UNKNOWN_TIME))


def test_without_time_lag_times_do_not_matter() -> None:
    model = shake(_model()).eval()
    (sequence,) = make_sequences([5])
    moved = sequence._replace(timestamp=sequence.timestamp // 7, request_time=UNKNOWN_TIME)
    assert torch.equal(
        model.user_embedding(collate([sequence], max_length=6)),
        model.user_embedding(collate([moved], max_length=6)),
    )


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="loss must be one of full_softmax, binary, got 'hinge'"):
        SASRecConfig(loss="hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"embedding_dim must be a multiple of num_heads \(2\), got 7"):
        SASRecConfig(embedding_dim=7)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        SASRecConfig(dropout=1.0)
    with pytest.raises(ValueError, match="exclude_seen needs loss = full_softmax, got binary"):
        SASRecConfig(exclude_seen=True, loss="binary")
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        SASRecConfig(num_layers=0)
