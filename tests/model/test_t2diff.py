from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import UNKNOWN_TIME, Sequence, SequenceBatch, collate
from model.diffusion import strided_steps
from model.noise import Noise, request_noise, route_keys
from model.registry import MODELS, build_model
from model.t2diff import T2Diff
from tests.model.conftest import TINY

VARIANTS: list[dict[str, Any]] = [
    {},
    {"predicted_next": "learned_token"},
    {"predicted_next": "last_behaviour"},
    {"predicted_next": "noised_truth"},
    {"readout": "mean"},
    {"time_lag": False},
    {"session_gap_seconds": 100},
    {"num_inference_steps": 2},
    {"predicted_next": "regressed"},
    {"drift_preparation": False},
    {"history_attention": "multi_head"},
    {"intent_loss_weight": 0.5},
    {"tower_gradient": False, "num_training_steps": 1},
    {"num_routes": 3},
    {"num_routes": 2, "intent_loss_weight": 0.5, "max_full_softmax_items": 5, "num_negatives": 64},
    {"max_full_softmax_items": 5, "num_negatives": 64},
    {"exclude_seen": True, "num_routes": 2},
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


def _noise(model: T2Diff, keys: Iterable[int], length: int) -> Noise:
    return request_noise(route_keys(list(keys), model.num_routes), length, 8)


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
    embeddings = model.user_embeddings(together, _noise(model, range(5), 6))
    for number, sequence in enumerate(sequences):
        batch = collate([sequence], max_length=6)
        alone = model.user_embeddings(batch, _noise(model, [number], batch.item_index.shape[1]))
        assert torch.allclose(alone[0], embeddings[number], atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{}, {"readout": "mean"}, {"session_gap_seconds": 90}, {"history_attention": "multi_head"}],
    ids=str,
)
def test_dense_training_computes_what_serving_the_cut_sequence_would(settings: dict[str, Any]) -> None:
    model = _model(**settings).eval()
    (whole,) = _sequences([6])
    batch = collate([whole], max_length=6)
    noise = request_noise([9], 6, 8)
    sequence = model.embed(batch.item_index)
    predicted = model.generate_next(sequence, batch.mask, steps=[4, 3, 2, 1], noise=noise)
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


@pytest.mark.parametrize("tower_gradient", [False, True])
def test_where_gradients_of_diffusion_and_tower_meet(tower_gradient: bool) -> None:
    """Eq. 25's stop-gradients: L_KL moves the U-Net alone, and L_TOWER moves it only where asked."""
    batch = _with_targets(collate(_sequences([6, 3]), max_length=6))

    def gradients(kl_weight: float) -> dict[str, torch.Tensor]:
        model = _model(kl_weight=kl_weight, tower_gradient=tower_gradient)
        torch.manual_seed(1)
        model.training_loss(batch).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    without, with_kl = gradients(0.0), gradients(5.0)
    for name in with_kl:
        if name.startswith("unet"):
            assert bool((without[name] != 0).any()) == tower_gradient
        else:
            assert torch.allclose(without[name], with_kl[name], atol=1e-6)
    assert any(bool((with_kl[name] != 0).any()) for name in with_kl if name.startswith("unet"))


def test_the_tower_loss_reaches_the_items_through_the_last_behaviour() -> None:
    """Without a U-Net nothing is left out of the gradient: it is the loss's slope along any direction."""
    batch = _with_targets(collate(_sequences([6, 3]), max_length=6))

    def slope_and_gradient(behaviour_gradient: bool) -> tuple[float, float]:
        model = _model(predicted_next="last_behaviour", behaviour_gradient=behaviour_gradient)
        weight = model.item_table.weight
        torch.nn.init.normal_(weight)
        torch.nn.init.normal_(model.last_scale)
        direction = torch.randn(weight.shape)
        model.training_loss(batch).backward()
        assert weight.grad is not None
        along = float((weight.grad * direction).sum())
        losses = []
        for step in (1e-3, -2e-3):
            with torch.no_grad():
                weight += step * direction
            losses.append(float(model.training_loss(batch).detach()))
        return (losses[0] - losses[1]) / 2e-3, along

    slope, along = slope_and_gradient(True)
    assert along == pytest.approx(slope, rel=0.02)
    slope, along = slope_and_gradient(False)
    assert along != pytest.approx(slope, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "holds_behaviour"),
    [
        ({}, True),
        ({"num_routes": 2}, True),
        ({"predicted_next": "regressed"}, True),
        ({"predicted_next": "learned_token"}, False),
        ({"drift_preparation": False}, False),
    ],
    ids=str,
)
def test_the_intent_holds_the_last_behaviour_as_the_tokens_do(
    settings: dict[str, Any], holds_behaviour: bool
) -> None:
    """Under their dropout and with their gradient; through the drift no gradient reaches the items."""
    batch = _with_targets(collate(_sequences([6, 3]), max_length=6))
    direction = torch.randn(2, 6, 8)
    given, gradients = [], []
    for behaviour_gradient in (False, True):
        model = _model(**settings, dropout=0.5, behaviour_gradient=behaviour_gradient)
        weight = model.item_table.weight
        torch.nn.init.normal_(weight)
        hook = model.attention.register_forward_pre_hook(lambda _, arguments: given.append(arguments[:2]))
        torch.manual_seed(3)
        model.training_loss(batch)
        hook.remove()
        towards = (given[-1][1] * direction.repeat(1, model.num_routes, 1)).sum()
        (gradient,) = torch.autograd.grad(towards + 0 * weight.sum(), weight, retain_graph=True)
        gradients.append(gradient)
    tokens, intents = zip(*given, strict=True)
    assert torch.equal(tokens[0], tokens[1])
    dropped = (tokens[1] - model.embed(batch.item_index)).repeat(1, model.num_routes, 1)
    assert dropped.any()
    assert not gradients[0].any()
    if holds_behaviour:
        assert torch.allclose(intents[1], intents[0] + dropped, atol=1e-5)
        held = model.num_routes * (tokens[1] * direction).sum()
        assert torch.allclose(gradients[1], torch.autograd.grad(held, weight)[0], atol=1e-5)
    else:
        assert torch.equal(intents[0], intents[1])
        assert not gradients[1].any()


def test_training_on_generated_intent_never_sees_the_target() -> None:
    """The default x̂ must not change when only the targets do; Algorithm 1's x̂ does."""

    def predicted(settings: dict[str, Any], shift: int) -> torch.Tensor:
        model = _model(**settings)
        batch = collate(_sequences([6, 3]), max_length=6)
        target = ((batch.item_index + shift) % 30 + 1) * batch.mask
        torch.manual_seed(2)
        return model._train_generator(replace(batch, target=target), model.embed(batch.item_index).detach())[
            0
        ]

    assert torch.equal(predicted({}, 1), predicted({}, 11))
    literal = {"predicted_next": "noised_truth"}
    assert not torch.equal(predicted(literal, 1), predicted(literal, 11))


@pytest.mark.parametrize("settings", [{}, {"num_routes": 2}], ids=str)
def test_training_hands_each_route_and_position_its_own_intent(settings: dict[str, Any]) -> None:
    """The loss equals the softmax of what serving gives for every cut of the sequence under the same x̂."""
    model = _model(**settings, dropout=0.0, request_time_dropout=0.0, kl_weight=0.0).eval()
    batch = _with_targets(collate(_sequences([6]), max_length=6))
    x_hat = torch.randn(1, model.num_routes, 6, 8)
    model._train_generator = lambda *_: (x_hat, torch.zeros(()))  # type: ignore[method-assign]
    assert batch.target is not None
    sequence = model.embed(batch.item_index)
    losses = []
    for position in range(6):
        where = torch.full((1, model.num_routes), position)
        user = model.attend(batch, sequence, x_hat[:, :, position], where)  # (1, R, D)
        score = (user[0] @ model.item_embeddings().T).amax(dim=0)
        losses.append(-torch.log_softmax(score, dim=0)[batch.target[0, position] - 1])
    assert float(model.training_loss(batch).detach()) == pytest.approx(
        float(torch.stack(losses).detach().mean()), rel=1e-5
    )


def test_routes_draw_their_own_noise_and_the_first_is_the_single_one() -> None:
    one, three = _model(drift_scale=1.0), _model(drift_scale=1.0, num_routes=3)
    three.load_state_dict(one.state_dict())
    batch = collate(_sequences([5, 3]), max_length=6)
    routes = three.eval().user_embeddings(batch, _noise(three, [1, 2], 5))
    single = one.eval().user_embedding(batch, _noise(one, [1, 2], 5))
    assert routes.shape == (2, 3, 8)
    assert torch.allclose(routes[:, 0], single, atol=1e-6)
    assert not torch.allclose(routes[:, 1], routes[:, 2], atol=1e-3)


def test_the_regressor_draws_no_noise() -> None:
    model = _model(predicted_next="regressed").eval()
    batch = collate(_sequences([5]), max_length=6)
    assert model.num_steps == 0
    assert torch.equal(model.user_embedding(batch), model.user_embedding(batch))


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"tower_gradient": False}, False),
        ({}, True),
        ({"tower_gradient": False, "intent_loss_weight": 1.0}, True),
        ({"tower_gradient": False, "predicted_next": "regressed"}, False),
        ({"predicted_next": "regressed"}, True),
    ],
    ids=str,
)
def test_what_else_may_train_the_generator(settings: dict[str, Any], learns: bool) -> None:
    """With λ = 0 the U-Net learns from the tower's loss or from x̂'s own, and from nothing unless asked."""
    model = _model(kl_weight=0.0, **settings)
    model.training_loss(_with_targets(collate(_sequences([6, 3]), max_length=6))).backward()
    learned = any(bool((p.grad != 0).any()) for p in model.unet.parameters() if p.grad is not None)
    assert learned == learns


@pytest.mark.parametrize("num_training_steps", [1, 3])
def test_the_tower_trains_the_generator_through_its_last_step(num_training_steps: int) -> None:
    model = _model(num_training_steps=num_training_steps)
    passes: list[tuple[int, bool]] = []
    model.unet.register_forward_hook(
        lambda unet, inputs, output: passes.append((int(inputs[2].max()), output.requires_grad))
    )
    model.training_loss(_with_targets(collate(_sequences([6, 3]), max_length=6)))
    _, *chain = passes  # the first one is for L_KL
    steps = strided_steps(model.num_steps, num_training_steps)
    assert chain == [(step, step == steps[-1]) for step in steps]


def test_the_intent_loss_does_not_move_the_items() -> None:
    batch = _with_targets(collate(_sequences([6, 3]), max_length=6))

    def gradient(weight: float) -> torch.Tensor:
        model = _model(intent_loss_weight=weight)
        torch.manual_seed(1)
        model.training_loss(batch).backward()
        assert model.item_table.weight.grad is not None
        return model.item_table.weight.grad

    assert torch.allclose(gradient(1.0), gradient(50.0), atol=1e-6)


def test_drifts_are_diffused_or_without_drift_preparation_the_behaviours() -> None:
    plain, prepared = _model(drift_preparation=False), _model()
    batch = collate(_sequences([4]), max_length=6)
    sequence = plain.embed(batch.item_index)
    following = torch.randn_like(sequence)
    assert torch.equal(plain.diffused_of(sequence, following), following)
    assert torch.equal(prepared.diffused_of(sequence, following), following - sequence)
    for model in (plain, prepared):
        scaled = model.config.drift_scale * model.diffused_of(sequence, following)
        assert torch.allclose(model.next_of(scaled, sequence), following, atol=1e-6)


def test_without_a_unet_the_tower_is_handed_the_last_behaviour_or_a_token() -> None:
    batch = collate(_sequences([4]), max_length=6)
    for predicted_next, share in (("last_behaviour", 2.0), ("learned_token", 0.0)):
        model = _model(predicted_next=predicted_next)
        with torch.no_grad():
            model.intent_token.fill_(0.5)
            if predicted_next == "last_behaviour":
                model.last_scale.fill_(2.0)
        handed: list[torch.Tensor] = []
        model.attend = lambda b, s, intent, p, handed=handed: handed.append(intent) or intent  # type: ignore
        model.user_embeddings(batch)
        last = model.embed(batch.item_index)[:, int(batch.length[0]) - 1]
        assert torch.allclose(handed[0][:, 0], share * last + 0.5)


@pytest.mark.parametrize("predicted_next", ["last_behaviour", "learned_token"])
def test_what_stands_for_the_intent_without_a_unet_is_learned(predicted_next: str) -> None:
    model = _model(predicted_next=predicted_next)
    with torch.no_grad():
        model.intent_token.normal_()
    model.training_loss(_with_targets(collate(_sequences([6, 3, 1]), max_length=6))).backward()
    learned = [model.intent_token] + ([model.last_scale] if predicted_next == "last_behaviour" else [])
    assert all(each.grad is not None and bool((each.grad != 0).any()) for each in learned)


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
