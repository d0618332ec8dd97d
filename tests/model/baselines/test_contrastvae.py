from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from model.baselines.contrastvae import (
    ContrastVAE,
    ContrastVAEConfig,
    alpha_prior,
    info_nce,
    kl_to_standard_normal,
)
from model.batch import collate
from tests.model.baselines.tiny_models import make_sequences, shake, tiny_model, with_random_targets

_model = partial(tiny_model, ContrastVAE)


def test_kl_by_hand() -> None:
    """½·(μ² + σ² - 1 - ln σ²) for (μ, σ²) = (3, 1) and (0, e²), summed."""
    kl = kl_to_standard_normal(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    assert kl.item() == pytest.approx(4.5 + 0.5 * (math.exp(2) - 3), rel=1e-5)


def test_info_nce_by_hand() -> None:
    """Two users with views (1, 0), (1, 0) and (0, 1), (1, 1)/√2: each row is a softmax over three views."""
    first, second = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    one, zero, half = math.exp(1 / 0.5), 1.0, math.exp(math.sqrt(0.5) / 0.5)
    rows = [
        one / (one + zero + half),  # user 1's first view: partner, then user 2's two
        half / (half + zero + zero),  # user 2's first: orthogonal to both of user 1's
        one / (one + zero + half),
        half / (half + half + half),
    ]
    expected = -sum(math.log(row) for row in rows) / 4
    assert info_nce(first, second, temperature=0.5).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_one_user_is_nothing() -> None:
    views = torch.randn(2, 1, 4, requires_grad=True)
    loss = info_nce(views[0], views[1], temperature=0.5)
    loss.backward()
    assert loss.item() == 0
    assert views.grad is not None
    assert bool(torch.isfinite(views.grad).all())


def test_alpha_prior_falls_as_the_noise_grows() -> None:
    low, middle, high = (float(alpha_prior(torch.tensor(value))) for value in (0.01, 0.5, 0.99))
    assert low > middle > high
    assert middle == pytest.approx(
        -(0.5 * math.log(0.5) + 1.16145124 * 0.5 - 1.50204118 * 0.25 + 0.58629921 * 0.125), rel=1e-5
    )


def test_the_loss_is_the_sum_of_its_parts() -> None:
    """Two predictions, two weighted KL terms, InfoNCE and the prior of α, under the same noise."""
    model = _model(kl_weight=0.3, kl_annealing_updates=1, contrast_weight=0.7)
    batch = with_random_targets(collate(make_sequences([6, 3]), max_length=6))
    assert batch.target is not None
    torch.manual_seed(1)
    loss = model.training_loss(batch)
    torch.manual_seed(1)
    mean, log_variance = model.encode(batch)
    alpha = 0.5
    real, target = batch.mask, batch.target[batch.mask]
    expected, views = alpha_prior(torch.tensor(alpha)), []
    for scale in (1.0, alpha):
        latent = mean + scale * torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        expected = expected + model.items.loss(model.decode(latent)[real], target)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=-1)
        expected = expected + 0.3 * kl[real].mean()
        views.append(torch.stack([latent[0].mean(dim=0), latent[1, :3].mean(dim=0)]))
    expected = expected + 0.7 * info_nce(views[0], views[1], temperature=0.5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_each_view_adds_to_the_mean() -> None:
    """σ·ε or σ itself; the second view α·σ·ε, or without α what the first adds, σ itself under dropout."""
    deviation = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 2, 4)
    noise = torch.Generator().manual_seed(3)
    drawn = torch.randn(1, 2, 4, generator=noise) * deviation

    def added(second: bool, **settings: Any) -> torch.Tensor:
        model = _model(**settings).train()
        torch.manual_seed(3)
        return (model.second_spread if second else model.first_spread)(deviation).detach()

    assert torch.allclose(added(False), drawn)
    assert torch.allclose(added(True), 0.5 * drawn)  # α starts at 0.5
    assert torch.allclose(added(True, augmentation="model"), drawn)
    assert torch.equal(added(False, latent="shifted"), deviation)
    assert torch.allclose(added(True, latent="shifted"), 0.5 * drawn)
    thinned = added(True, latent="shifted", augmentation="model", dropout=0.5)
    assert set((thinned / deviation).flatten().tolist()) == {0.0, 2.0}


def test_serving_decodes_the_means_or_as_published_a_deviation_above_them() -> None:
    batch = collate(make_sequences([6, 3]), max_length=6)
    for latent, share in (("drawn", 0.0), ("shifted", 1.0)):
        model = shake(_model(latent=latent)).eval()
        assert isinstance(model, ContrastVAE)
        mean, log_variance = model.encode(batch)
        expected = model.decode(mean + share * torch.exp(log_variance / 2))
        assert torch.allclose(model.states(batch), expected, atol=1e-6)
        assert float(torch.exp(log_variance / 2).detach().mean()) > 0.1


def test_kl_is_annealed_and_the_count_is_kept_with_the_weights() -> None:
    batch = with_random_targets(collate(make_sequences([6, 3]), max_length=6))
    losses = []
    for updates in (0, 1, 5, 10):
        model = _model(kl_weight=1.0, kl_annealing_updates=4)
        model.num_updates.fill_(updates)
        torch.manual_seed(1)
        losses.append(model.training_loss(batch).item())
        assert model.state_dict()["num_updates"].item() == updates + 1
    assert losses[0] < losses[1] < losses[2] == losses[3]


def test_serving_draws_nothing() -> None:
    model = shake(_model()).eval()
    batch = collate(make_sequences([6, 3]), max_length=6)
    assert torch.equal(model.user_embedding(batch), model.user_embedding(batch))
    assert model.num_steps == 0


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="augmentation must be one of variational, model, got 'crop'"):
        ContrastVAEConfig(augmentation="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latent must be one of drawn, shifted, got 'mean'"):
        ContrastVAEConfig(latent="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        ContrastVAEConfig(temperature=0)
    with pytest.raises(ValueError, match="kl_weight must be at least 0"):
        ContrastVAEConfig(kl_weight=-0.1)
