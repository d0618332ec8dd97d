from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from model.baselines.stosa import STOSA, STOSAConfig, WassersteinLayer, deviation, squared_wasserstein
from model.evaluation import score_items
from tests.model.baselines.tiny_models import shake, tiny_model

_model = partial(tiny_model, STOSA)


def test_wasserstein_distance_by_hand() -> None:
    """N((1, 0), diag(4, 9)) and N((0, 2), diag(1, 16)): 1 + 4 from the means, 1 + 1 from the deviations."""
    first = torch.tensor([[1.0, 0.0, 2.0, 3.0]])
    second = torch.tensor([[0.0, 2.0, 1.0, 4.0], [1.0, 0.0, 2.0, 3.0]])
    assert squared_wasserstein(first, second)[0].tolist() == pytest.approx([7.0, 0.0])


def test_deviation_is_the_root_of_elu_plus_one_with_a_finite_gradient() -> None:
    raw = torch.tensor([-200.0, -3.0, -0.5, 0.3, 4.0], requires_grad=True)
    expected = [math.sqrt(math.exp(x)) if x < 0 else math.sqrt(1 + x) for x in raw.tolist()]
    assert deviation(raw).tolist() == pytest.approx(expected)
    deviation(raw).sum().backward()
    assert raw.grad is not None
    assert bool(torch.isfinite(raw.grad).all())


def test_attention_by_hand() -> None:
    """One head, two positions; queries, keys and values set to their inputs.

    Position 1 sees itself at distance 0 and position 0 at W₂² = (3 - 1)² + (√4 - √1)² = 5. The value
    of the mean is w·μ, that of the covariance w²·Σ.
    """
    layer = WassersteinLayer(STOSAConfig(embedding_dim=1, num_heads=1, dropout=0.0))
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        layer.mean_stream.of_attention.weight.fill_(1.0)
        layer.mean_stream.of_attention.bias.zero_()
        layer.covariance_stream.of_attention.weight.fill_(1.0)
        layer.covariance_stream.of_attention.bias.fill_(-1.0)  # ELU(Σ - 1) + 1 = Σ for Σ >= 1

    def catch(name: str) -> Any:
        def finish(values: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
            seen[name] = attended.flatten()
            return values

        return finish

    layer.mean_stream.finish = catch("mean")  # type: ignore[method-assign]
    layer.covariance_stream.finish = catch("covariance")  # type: ignore[method-assign]
    mean, covariance = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0])
    layer(mean.view(1, 2, 1), (covariance - 1).view(1, 2, 1))
    w0 = math.exp(-5) / (math.exp(-5) + 1)
    assert seen["mean"].tolist() == pytest.approx([1.0, w0 * 1 + (1 - w0) * 3])
    assert seen["covariance"].tolist() == pytest.approx([1.0, w0**2 * 1 + (1 - w0) ** 2 * 4])


def test_the_feed_forward_network_by_hand() -> None:
    """LayerNorm of (3, 1) is (1, -1); then x + ELU(x), with W = 1."""
    stream = WassersteinLayer(STOSAConfig(embedding_dim=2, num_heads=1, feed_forward_hidden=2, dropout=0.0))
    mean_stream = stream.mean_stream
    with torch.no_grad():
        for linear in (mean_stream.of_output, mean_stream.feed_forward[0], mean_stream.feed_forward[2]):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    mean_stream.norm_feed_forward = torch.nn.Identity()  # type: ignore[assignment]
    out = mean_stream.finish(torch.tensor([[[2.0, 0.5]]]), torch.tensor([[[[1.0, 0.5]]]]))
    assert out.flatten().tolist() == pytest.approx([1 + 1, -1 + math.exp(-1) - 1], abs=1e-4)


def test_full_softmax_is_over_the_distances_that_the_index_ranks_by() -> None:
    model = shake(_model())
    user, target = torch.randn(3, 16), torch.tensor([4, 30, 1])
    scores = score_items(user, model.item_embeddings(), model.metric)
    expected = torch.nn.functional.cross_entropy(scores, target - 1)
    assert model.loss(user, target).item() == pytest.approx(expected.item(), rel=1e-4)


def test_ranking_loss_by_hand() -> None:
    """Two items, so the negative is certain: distances 2² to the target, 1² to the other, 3² between."""
    model = STOSA(STOSAConfig(embedding_dim=1, num_heads=1, loss="ranking", margin_weight=0.5), 2)
    with torch.no_grad():
        model.items.item_table.weight[1:] = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])  # means; covariances 1
    user = torch.tensor([[0.0, 1.0]])
    assert model.loss(user, torch.tensor([1])).item() == pytest.approx(math.log1p(math.exp(4 - 1)))
    model.items.item_table.weight.data[2, 0] = 1.0  # now 1 between them: the margin 4 - 1 counts
    expected = math.log1p(math.exp(4 - 1)) + 0.5 * 3
    assert model.loss(user, torch.tensor([1])).item() == pytest.approx(expected)


def test_embeddings_are_for_an_l2_index_of_twice_the_dimension() -> None:
    model = _model()
    assert model.metric == "l2"
    assert model.embedding_dim == 16
    assert bool((model.item_embeddings()[:, 8:] > 0).all())


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="loss must be one of full_softmax, ranking, got 'binary'"):
        STOSAConfig(loss="binary")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"embedding_dim must be a multiple of num_heads \(3\), got 64"):
        STOSAConfig(num_heads=3)
    with pytest.raises(ValueError, match="margin_weight must be at least 0"):
        STOSAConfig(margin_weight=-1.0)
