from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import UNKNOWN_TIME, Sequence, SequenceBatch, collate
from model.noise import request_noise
from model.registry import MODELS, build_model
from model.t2diff import T2Diff
from tests.model.conftest import TINY

VARIANTS: list[dict[str, Any]] = [
    {},
    {"predicted_next": "learned_token"},
    {"predicted_next": "noised_truth"},
    {"readout": "mean"},
    {"time_lag": False},
    {"session_gap_seconds": 100},
    {"num_inference_steps": 2},
    {"max_full_softmax_items": 5, "num_negatives": 64},
]


def _model(num_items: int = 30, **settings: Any) -> T2Diff:
    torch.manual_seed(0)
    model = build_model("t2diff", {**TINY, **settings}, num_items)
    assert isinstance(model, T2Diff)
    model.seen_gap.fill_(True)  # as after training: time lags count
    return model


def _sequences(lengths: list[int], num_items: int = 30) -> list[Sequence]:
    rng = np.random.default_rng(5)
    return [
        Sequence(rng.integers(1, num_items + 1, length), 1_000 + 60 * np.arange(length), 1_000 + 60 * length)
        for length in lengths
    ]


def _with_targets(batch: SequenceBatch) -> SequenceBatch:
    target = torch.randint(1, 31, batch.item_index.shape) * batch.mask
    return replace(batch, target=target)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_contract(settings: dict[str, Any]) -> None:
    model = _model(**settings)
    batch = _with_targets(collate(_sequences([6, 3, 1]), max_length=6))
    assert model.user_embedding(batch).shape == (3, 8)
    assert model.item_embeddings().shape == (30, 8)
    loss = model.training_loss(batch)
    assert loss.ndim == 0
    loss.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize("settings", [*VARIANTS, {"unet_padding": "same"}], ids=str)
def test_padding_never_changes_an_embedding(settings: dict[str, Any]) -> None:
    """Alone or beside a longer sequence, with the same noise, a user's embedding is the same."""
    model = _model(**settings).eval()
    for name, parameter in model.named_parameters():
        if "item_table" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    sequences = _sequences([2, 6, 1, 5, 4])
    together = collate(sequences, max_length=6)
    embeddings = model.user_embedding(together, request_noise(range(5), 6, 8))
    for number, sequence in enumerate(sequences):
        batch = collate([sequence], max_length=6)
        alone = model.user_embedding(batch, request_noise([number], batch.item_index.shape[1], 8))
        assert torch.allclose(alone[0], embeddings[number], atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"readout": "mean"}, {"session_gap_seconds": 90}], ids=str)
def test_dense_training_computes_what_serving_the_cut_sequence_would(settings: dict[str, Any]) -> None:
    model = _model(**settings).eval()
    (whole,) = _sequences([6])
    batch = collate([whole], max_length=6)
    noise = request_noise([9], 6, 8)
    sequence = model.embed(batch.item_index)
    predicted = model.generate_next(sequence, batch.mask, num_visited=4, noise=noise)
    dense = model.attend(batch, sequence, predicted, torch.arange(6)[None])
    for length in range(1, 7):
        cut = Sequence(whole.item_index[:length], whole.timestamp[:length], 1_000 + 60 * length)
        served = model.user_embedding(collate([cut], max_length=6), request_noise([9], length, 8))
        assert torch.allclose(served[0], dense[0, length - 1], atol=1e-5)


def test_overfits_one_batch() -> None:
    model = _model(num_items=30, kl_weight=1.0)
    sequences = _sequences([6, 6, 5, 4])
    batch = collate(sequences, max_length=6)
    following = torch.cat([batch.item_index[:, 1:], torch.zeros(4, 1, dtype=torch.long)], dim=1)
    target = following.scatter(1, (batch.length - 1)[:, None], torch.tensor([[3], [9], [12], [25]]))
    batch = replace(batch, target=target)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(250):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
    model.eval()
    scores = model.user_embedding(batch) @ model.item_embeddings().T
    assert (scores.argmax(dim=1) + 1).tolist() == [3, 9, 12, 25]


def test_gradients_of_diffusion_and_tower_never_meet() -> None:
    """Eq. 25's stop-gradient: without L_KL the U-Net learns nothing, with it the rest is unmoved."""
    batch = _with_targets(collate(_sequences([6, 3]), max_length=6))

    def gradients(kl_weight: float) -> dict[str, torch.Tensor]:
        model = _model(kl_weight=kl_weight)
        torch.manual_seed(1)
        model.training_loss(batch).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    without, with_kl = gradients(0.0), gradients(5.0)
    for name in with_kl:
        if name.startswith("unet"):
            assert bool((without[name] == 0).all())
        else:
            assert torch.allclose(without[name], with_kl[name], atol=1e-6)
    assert any(bool((with_kl[name] != 0).any()) for name in with_kl if name.startswith("unet"))


def test_training_on_generated_intent_never_sees_the_target() -> None:
    """The default x̂ must not change when only the targets do; Algorithm 1's x̂ does."""

    def predicted(settings: dict[str, Any], shift: int) -> torch.Tensor:
        model = _model(**settings)
        batch = collate(_sequences([6, 3]), max_length=6)
        target = ((batch.item_index + shift) % 30 + 1) * batch.mask
        torch.manual_seed(2)
        return model._train_diffusion(replace(batch, target=target), model.embed(batch.item_index).detach())[
            0
        ]

    assert torch.equal(predicted({}, 1), predicted({}, 11))
    literal = {"predicted_next": "noised_truth"}
    assert not torch.equal(predicted(literal, 1), predicted(literal, 11))


def test_a_pause_never_seen_in_training_is_treated_as_unknown() -> None:
    model = _model()
    for name, parameter in model.named_parameters():
        if "lag" in name or "gap" in name:
            torch.nn.init.normal_(parameter)
    model.seen_gap.zero_()
    (sequence,) = _sequences([5])
    train_batch = _with_targets(collate([sequence], max_length=6))
    model.train()
    model.training_loss(train_batch)  # pauses of 60 s, bucket 7; some hidden, bucket 0
    model.eval()
    assert set(model.seen_gap.nonzero().flatten().tolist()) <= {0, 7}

    def embedding(request_time: int) -> torch.Tensor:
        batch = collate([sequence._replace(request_time=request_time)], max_length=6)
        return model.user_embedding(batch, request_noise([1], 5, 8))

    last = int(sequence.timestamp[-1])
    assert torch.equal(embedding(last + 10**9), embedding(UNKNOWN_TIME))
    model.seen_gap[7] = True
    assert not torch.allclose(embedding(last + 60), embedding(UNKNOWN_TIME), atol=1e-4)


def test_default_size_is_the_papers() -> None:
    model = build_model("t2diff", {}, 3_706)
    assert isinstance(model, T2Diff)
    unet = sum(p.numel() for p in model.unet.parameters())
    every = sum(p.numel() for p in model.parameters()) - model.item_table.weight.numel()
    assert 0.055e6 < unet < 0.075e6
    assert 0.17e6 < every < 0.21e6
    assert model.num_steps == 50


def test_unknown_settings_and_models_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no setting 'dropuot'.*dropout"):
        build_model("t2diff", {"dropuot": 0.1}, 5)
    with pytest.raises(ValueError, match=r"must be one of t2diff.*'t3diff'"):
        build_model("t3diff", {}, 5)
    with pytest.raises(ValueError, match="dropout must be like"):
        build_model("t2diff", {"dropout": "much"}, 5)
    with pytest.raises(ValueError, match="readout must be one of last, mean"):
        build_model("t2diff", {"readout": "median"}, 5)
    with pytest.raises(ValueError, match="num_inference_steps must be at most"):
        build_model("t2diff", {"num_inference_steps": 51}, 5)
    assert "t2diff" in MODELS
