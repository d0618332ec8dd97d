"""A model goes on with more items: what it knew stays, what is new begins beside its neighbours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batch import Sequence, collate
from model.checkpoint import load_checkpoint
from model.continued import continue_checkpoint
from model.counted import CountedTower
from model.data.dataset import leave_one_out
from model.noise import request_key, request_noise
from model.registry import MODELS, build_model
from model.training import TrainingSettings, train
from model.warm_start import (
    Beside,
    WarmStart,
    continue_from,
    item_tensors,
    items_beside,
    place_beside,
)
from tests.model.conftest import TINY, make_log

KNOWN, GROWN = 30, 35
TRAINED = [name for name in MODELS if not issubclass(MODELS[name][1], CountedTower)]  # type: ignore[arg-type]


def grow(name: str, beside: Beside) -> tuple[torch.nn.Module, torch.nn.Module]:
    """An old model of KNOWN items and one of GROWN that goes on from it, in evaluation mode."""
    torch.manual_seed(1)
    old = build_model(name, {}, KNOWN).eval()
    torch.manual_seed(2)
    new = build_model(name, {}, GROWN).eval()
    start = WarmStart("old", [f"i{item}" for item in range(KNOWN)], old.state_dict(), beside)
    continue_from(new, start, item_tensors(name, {}))
    return old, new


@pytest.mark.parametrize("name", TRAINED)
def test_before_training_known_items_and_users_are_what_they_were(name):
    old, new = grow(name, Beside(np.array([33]), np.array([2]), np.array([1.0])))
    rows = np.array([1, 2, 30, 2, 7])
    batch = collate([Sequence(rows, 1_000_000 + 60 * np.arange(5), 1_001_000)], max_length=20)
    with torch.inference_mode():
        assert torch.equal(new.item_embeddings()[:KNOWN], old.item_embeddings())
        users = [
            model.user_embeddings(batch, noise_of(model, batch) if model.num_steps else None)
            for model in (old, new)
        ]
    assert torch.equal(*users)
    assert not torch.equal(old.item_embeddings()[0], old.item_embeddings()[1])


def noise_of(model, batch):
    return request_noise([request_key(0, "u")] * model.num_routes, batch.item_index.shape[1], model.noise_dim)


@pytest.mark.parametrize("name", TRAINED)
def test_a_new_item_stands_where_its_neighbours_do(name):
    """One neighbour alone: the new item is its copy, in every table of the model."""
    _, new = grow(name, Beside(np.array([33]), np.array([2]), np.array([4.0])))
    items = new.item_embeddings().detach()
    torch.testing.assert_close(items[32], items[1])
    assert not torch.allclose(items[31], items[1])
    assert torch.isfinite(items).all()


def test_the_mean_is_weighted_by_counts_and_as_long_as_the_neighbours_are():
    model = build_model("sasrec", {"embedding_dim": 4, "num_heads": 1}, 5)
    table = model.get_parameter("items.item_table.weight")
    with torch.no_grad():
        table[1] = torch.tensor([2.0, 0.0, 0.0, 0.0])
        table[2] = torch.tensor([0.0, 4.0, 0.0, 0.0])
    beside = Beside(np.array([5, 5]), np.array([1, 2]), np.array([3.0, 1.0]))
    place_beside(model, beside, item_tensors("sasrec", {}))
    mean = torch.tensor([6.0, 4.0, 0.0, 0.0]) / 4
    expected = mean / mean.norm() * (3 * 2.0 + 4.0) / 4
    torch.testing.assert_close(table[5].detach(), expected)


def test_an_item_without_neighbours_points_anywhere_at_the_median_norm():
    old, new = grow("t2diff", Beside())
    norms = new.item_embeddings().detach().norm(dim=1)
    median = old.item_embeddings().detach().norm(dim=1).median()
    torch.testing.assert_close(norms[KNOWN:], median.expand(GROWN - KNOWN))
    directions = new.item_embeddings().detach()[KNOWN:] / norms[KNOWN:, None]
    assert float((directions @ directions.T).fill_diagonal_(0).max()) < 0.9


def test_every_model_says_which_of_its_tensors_have_a_row_an_item():
    for name in MODELS:
        tensors = item_tensors(name, {})
        assert bool(tensors) == (name in TRAINED), name
    assert item_tensors("t2diff", {}) == {"item_table.weight": 1, "sampling_probability": 0}


def test_a_start_of_another_model_is_refused_by_name():
    old = build_model("t2diff", {"embedding_dim": 32}, KNOWN)
    ids = [f"i{item}" for item in range(KNOWN)]
    new = build_model("t2diff", {}, GROWN)
    with pytest.raises(ValueError, match=r"item_table.weight of old is \(31, 32\), not \(31, 64\)"):
        continue_from(new, WarmStart("old", ids, old.state_dict()), item_tensors("t2diff", {}))
    with pytest.raises(ValueError, match="of old is missing"):
        continue_from(new, WarmStart("old", ids, {}), item_tensors("t2diff", {}))


def test_items_beside_are_counted_within_one_user_and_reach():
    log = make_log([[1, 4, 2], [4, 3], [2, 2, 1]], num_items=4)
    beside = items_beside(log, np.arange(4) >= 3, reach=1)
    pairs = list(zip(beside.new.tolist(), beside.known.tolist(), beside.count.tolist(), strict=True))
    assert pairs == [(4, 1, 1.0), (4, 2, 1.0), (4, 3, 1.0)]
    assert not len(items_beside(log, np.arange(4) >= 4).new)
    far = make_log([[1, 2, 2, 4]], num_items=4)
    assert items_beside(far, np.arange(4) >= 3, reach=2).known.tolist() == [2]
    assert items_beside(far, np.arange(4) >= 3, reach=2).count.tolist() == [2.0]


def test_training_goes_on_from_a_checkpoint_whose_rows_keep_their_index(cyclic_log, tmp_path: Path):
    """With a learning rate of nothing, the next run ends with the weights of the first."""
    settings = TrainingSettings(epochs=2, batch_size=8, learning_rate=1e-2, warmup_updates=2)
    run = {"model_name": "t2diff", "model_config": TINY}
    train(leave_one_out(cyclic_log), **run, settings=settings, out=tmp_path / "first")
    first = load_checkpoint(tmp_path / "first")
    more = make_log([[50, 3, 2, 50, 9, 1] for _ in range(9)], num_items=50)
    more = dataclasses.replace(more, item_ids=[f"i{51 - number}" for number in range(1, 51)])
    log, start = continue_checkpoint(more, tmp_path / "first", model_name="t2diff", model_config=TINY)
    assert log.item_ids[:45] == first.item_ids
    names = [log.item_ids[item - 1] for item in log.item_index[:6]]
    assert names == ["i1", "i48", "i49", "i1", "i42", "i50"]
    still = dataclasses.replace(settings, epochs=1, learning_rate=0.0)
    train(leave_one_out(log), **run, settings=still, out=tmp_path / "second", warm_start=start)
    second = load_checkpoint(tmp_path / "second")
    for name, tensor in first.model.state_dict().items():
        if name != "sampling_probability":  # counted in the new log
            assert torch.equal(second.model.state_dict()[name][: len(tensor)], tensor), name
    assert second.settings["continued_from"].startswith("checkpoint of")


def test_a_checkpoint_of_other_settings_or_items_is_not_gone_on_from(cyclic_log, tmp_path: Path):
    settings = TrainingSettings(epochs=1, batch_size=8)
    split = leave_one_out(cyclic_log)
    train(split, model_name="t2diff", model_config=TINY, settings=settings, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"continue_from: .* holds a t2diff of other settings"):
        continue_checkpoint(cyclic_log, tmp_path / "run", model_name="t2diff", model_config={})
    start = WarmStart("old", ["another", *cyclic_log.item_ids[1:]], {})
    with pytest.raises(ValueError, match="the first 45 items are not those of old"):
        train(
            split,
            model_name="t2diff",
            model_config=TINY,
            settings=settings,
            out=tmp_path / "other",
            warm_start=start,
        )
