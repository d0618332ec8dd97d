from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from model.baselines.diffurec import DiffuRec, DiffuRecConfig, truncated_linear_schedule
from model.batch import Sequence, collate
from model.noise import request_noise
from tests.model.baselines.tiny_models import make_sequences, shake, tiny_model, with_random_targets

_model = partial(tiny_model, DiffuRec)


def test_schedule_of_thirty_two_steps_by_hand() -> None:
    schedule = truncated_linear_schedule(32)
    betas = schedule.betas.tolist()
    assert betas[0] == pytest.approx(31.25 * 0.0001 + 0.01)
    assert betas[-1] == pytest.approx(31.25 * 0.02 + 0.01, rel=1e-4)
    assert betas[1] - betas[0] == pytest.approx(31.25 * 0.0199 / 31, rel=1e-3)
    assert schedule.alphas_cumprod[1].item() == pytest.approx((1 - betas[0]) * (1 - betas[1]), rel=1e-5)


def test_schedule_of_few_steps_is_truncated() -> None:
    assert truncated_linear_schedule(10).betas[-1].item() == pytest.approx(100 * 0.001 + 0.01, rel=1e-3)
    assert len(truncated_linear_schedule(1).betas) == 1


def test_every_token_carries_the_noised_target_and_the_step() -> None:
    """z_i = e_i + λ·(x_t + d_t), with λ at its mean while serving."""
    model = shake(_model(uncertainty=0.25)).eval()
    seen: list[torch.Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = collate(make_sequences([4]), max_length=6)
    tokens, noised = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    model.approximate(batch, tokens, noised, torch.tensor([3]))
    scaled = 3 * 1_000 / 4
    frequency = torch.tensor([10_000 ** (-index / 4) for index in range(4)])
    of_step = model.of_step(torch.cat([(scaled * frequency).sin(), (scaled * frequency).cos()])[None])
    assert torch.allclose(seen[0], tokens + 0.25 * (noised + of_step), atol=1e-4)


def test_training_diffuses_the_item_that_follows_each_position() -> None:
    """x_t = √ᾱ_t·e_{i+1} + √(1 - ᾱ_t)·ε with its own target in every token, or the last one's in all."""
    batch = with_random_targets(collate(make_sequences([4, 6]), max_length=6))
    assert batch.target is not None
    last_target = [int(batch.target[0, 3]), int(batch.target[1, 5])]
    for supervision in ("dense", "last"):
        model = shake(_model(supervision=supervision))
        assert isinstance(model, DiffuRec)
        seen: list[tuple[torch.Tensor, int]] = []
        original = model.approximate

        def watch(b: Any, tokens: Any, noised: Any, step: Any, seen: Any = seen, f: Any = original) -> Any:
            seen.append((noised, step))
            return f(b, tokens, noised, step)

        model.approximate = watch  # type: ignore[method-assign]
        torch.manual_seed(3)
        model.training_loss(batch)
        torch.manual_seed(3)
        step = torch.randint(1, 5, (2,))
        noise = torch.randn(2, 6, 8)
        alpha = model.schedule.alphas_cumprod[step - 1]
        for row, length in enumerate((4, 6)):
            for column in range(length):
                at = length - 1 if supervision == "last" else column
                item = int(batch.item_index[row, at + 1]) if at < length - 1 else last_target[row]
                expected = alpha[row].sqrt() * model.items.item_table.weight[item]
                expected = expected + (1 - alpha[row]).sqrt() * noise[row, at]
                assert torch.allclose(seen[0][0][row, column], expected, atol=1e-6)


def test_two_reverse_steps_by_hand() -> None:
    """x_2 = noise; x̂_0; x_1 from the posterior with noise(1); x̂_0 again is the answer."""
    model = shake(_model(num_steps=2, uncertainty=0.5)).eval()
    answers = [torch.full((1, 1, 8), 2.0), torch.full((1, 1, 8), -3.0)]
    seen: list[torch.Tensor] = []

    def approximate(_: Any, __: Any, noised: torch.Tensor, ___: Any) -> torch.Tensor:
        seen.append(noised)
        return answers[len(seen) - 1]

    model.approximate = approximate  # type: ignore[method-assign]
    noise = request_noise([5], 1, 8)
    embedding = model.user_embedding(collate(make_sequences([1]), max_length=6), noise)
    beta_1, beta_2 = model.schedule.betas.double().tolist()
    bar_1, bar_2 = 1 - beta_1, (1 - beta_1) * (1 - beta_2)
    mean = math.sqrt(bar_1) * beta_2 / (1 - bar_2) * 2.0
    mean = mean + math.sqrt(1 - beta_2) * (1 - bar_1) / (1 - bar_2) * noise(2)
    expected = mean + math.sqrt((1 - bar_1) / (1 - bar_2) * beta_2) * noise(1)
    assert torch.equal(seen[0], noise(2))
    assert torch.allclose(seen[1], expected, atol=1e-5)
    assert torch.allclose(embedding, torch.full((1, 8), -3.0), atol=1e-5)


def test_the_position_j_of_a_dense_pass_is_that_of_the_sequence_cut_after_it() -> None:
    model = shake(_model(uncertainty=0.3)).eval()
    (whole,) = make_sequences([6])
    noised, step = torch.randn(1, 6, 8), torch.tensor([2])
    batch = collate([whole], max_length=6)
    dense = model.approximate(batch, model.embed(batch.item_index), noised, step)
    for cut in range(1, 7):
        shorter = collate([Sequence(whole.item_index[:cut], whole.timestamp[:cut])], max_length=6)
        alone = model.approximate(shorter, model.embed(shorter.item_index), noised[:, :cut], step)
        assert torch.allclose(alone[0, -1], dense[0, cut - 1], atol=1e-5)


@pytest.mark.parametrize("supervision", ["dense", "last"])
def test_serving_never_looks_at_the_target(supervision: str) -> None:
    model = shake(_model(uncertainty=0.5, supervision=supervision)).eval()
    batch = collate(make_sequences([6, 3]), max_length=6)
    noise = request_noise([1, 2], 6, 8)
    with_target = replace(batch, target=torch.full_like(batch.item_index, 7) * batch.mask)
    assert torch.equal(model.user_embedding(batch, noise), model.user_embedding(with_target, noise))


def test_noise_given_is_the_only_source_of_chance() -> None:
    model = shake(_model(uncertainty=0.5)).eval()
    batch = collate(make_sequences([6, 3]), max_length=6)
    first = model.user_embedding(batch, request_noise([1, 2], 6, 8))
    assert torch.equal(first, model.user_embedding(batch, request_noise([1, 2], 6, 8)))
    assert not torch.allclose(first, model.user_embedding(batch, request_noise([1, 3], 6, 8)), atol=1e-3)
    assert not torch.allclose(model.user_embedding(batch), model.user_embedding(batch), atol=1e-3)


def test_in_the_published_form_only_the_last_position_is_trained() -> None:
    model = _model(supervision="last")
    batch = with_random_targets(collate(make_sequences([6, 3]), max_length=6))
    assert batch.target is not None
    other = batch.target.clone()
    other[0, :5], other[1, :2] = 1, 1
    losses = []
    for target in (batch.target, other):
        torch.manual_seed(1)
        losses.append(model.training_loss(replace(batch, target=target)).item())
    assert losses[0] == losses[1]


def test_all_default_steps_are_visited() -> None:
    model = shake(_model()).eval()
    visited: list[int] = []
    noise = request_noise([1], 3, 8)

    def watch(step: int) -> torch.Tensor:
        visited.append(step)
        return noise(step)

    batch = collate([Sequence(np.array([1, 2, 3]), np.array([1, 2, 3]))], max_length=6)
    model.user_embedding(batch, watch)
    assert visited == [4, 3, 2, 1]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="supervision must be one of dense, last, got 'first'"):
        DiffuRecConfig(supervision="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_inference_steps must be in 1..32 \(num_steps\), got 33"):
        DiffuRecConfig(num_inference_steps=33)
    with pytest.raises(ValueError, match="embedding_dim must be a multiple of 4, got 6"):
        DiffuRecConfig(embedding_dim=6, num_heads=2)
