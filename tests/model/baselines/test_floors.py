from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_builder.build import build_bundle
from index_builder.bundle import load_bundle
from index_builder.candidates import recall_sequences
from index_builder.publish import Store
from model.baselines import pair_counts
from model.baselines.floors import ItemKNN, ItemKNNConfig, Markov, MarkovConfig, Popularity, PopularityConfig
from model.baselines.pair_counts import count_pairs
from model.batch import UNKNOWN_TIME, Sequence, SequenceBatch, collate
from model.checkpoint import load_checkpoint
from model.counted import CountedTower
from model.data.dataset import leave_one_out
from model.data.interactions import Interactions
from model.evaluation import metrics_of_ranks, rank_targets
from model.registry import build_model
from model.training import train
from model.training_settings import TrainingSettings
from tests.model.conftest import make_log

LOG = make_log([[1, 2, 1, 2, 3], [1, 2, 4], [5, 1, 2]], num_items=6)


def _ask(*items: int) -> SequenceBatch:
    return collate([Sequence(np.array(items), np.full(len(items), UNKNOWN_TIME))], max_length=len(items))


def _fitted(name: str, log: Interactions = LOG, **settings: Any) -> CountedTower:
    model = build_model(name, settings, log.num_items)
    assert isinstance(model, CountedTower)
    model.fit(log)
    return model.eval()


def test_popularity_orders_items_by_their_counts_for_everyone() -> None:
    model = _fitted("popularity")
    batch = collate([LOG.sequence(0), LOG.sequence(1)], max_length=1)
    scores = model.score_all(batch)  # counts 4, 4, 1, 1, 1, 0
    assert torch.equal(scores[0], scores[1])
    assert (scores[0].argsort(descending=True) + 1).tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(model.user_embedding(batch) @ model.item_embeddings().T, scores)


def test_transitions_by_hand_and_popularity_behind_them() -> None:
    """1 is followed by 2 four times; 2 by 1, 3 and 4; 6 by nothing: popularity alone."""
    model = _fitted("markov", backoff=0.5)
    popularity = torch.tensor([4, 4, 1, 1, 1, 0]) / 11
    assert torch.allclose(model.score_all(_ask(1))[0], torch.tensor([0, 4, 0, 0, 0, 0]) + 0.5 * popularity)
    assert torch.allclose(model.score_all(_ask(2))[0], torch.tensor([1, 0, 1, 1, 0, 0]) + 0.5 * popularity)
    assert torch.allclose(model.score_all(_ask(6))[0], 0.5 * popularity)


def test_a_transition_never_leads_from_one_user_to_the_next() -> None:
    """User 0 ends with 3 and user 1 begins with 1; no user goes from 3 to 1."""
    assert torch.equal(_fitted("markov", backoff=0.0).score_all(_ask(3))[0], torch.zeros(6))


def test_only_the_strongest_neighbours_are_kept() -> None:
    log = make_log([[1, 2], [1, 2], [1, 3], [1, 3], [1, 3], [1, 4]], num_items=4)
    model = _fitted("markov", log, max_neighbours=2, backoff=0.0)
    assert model.score_all(_ask(1))[0].tolist() == [0, 2, 3, 0]


def test_cosine_by_hand() -> None:
    """Within one behaviour: 1 and 2 meet 5 times of 4 and 4 occurrences, 2 and 4 once of 4 and 1."""
    model = _fitted("item_knn", window=1, shrinkage=0.0, backoff=0.0, recency=0.5)
    assert model.score_all(_ask(4))[0].tolist() == pytest.approx([0, 1 / math.sqrt(4), 0, 0, 0, 0])
    of_2 = [5 / 4, 0, 1 / 2, 1 / 2, 0, 0]
    assert model.score_all(_ask(2))[0].tolist() == pytest.approx(of_2)
    both = [of_2[0], 0.5 * 1 / 2, *of_2[2:]]  # 4 came one behaviour before 2: half the weight
    assert model.score_all(_ask(4, 2))[0].tolist() == pytest.approx(both)
    shrunk = _fitted("item_knn", window=1, shrinkage=3.0, backoff=0.0)
    assert shrunk.score_all(_ask(4))[0, 1].item() == pytest.approx(1 / math.sqrt(7 * 4))


def test_an_item_is_not_its_own_neighbour_and_a_wider_window_meets_more() -> None:
    narrow, wide = (_fitted("item_knn", window=w, backoff=0.0, shrinkage=0.0) for w in (1, 4))
    assert narrow.score_all(_ask(3))[0].nonzero().flatten().tolist() == [1]
    assert wide.score_all(_ask(3))[0].nonzero().flatten().tolist() == [0, 1]
    assert wide.score_all(_ask(1))[0].nonzero().flatten().tolist() == [1, 2, 3, 4]  # 1 stands near 1, too


def test_padding_adds_nothing() -> None:
    model = _fitted("item_knn")
    together = collate([LOG.sequence(1), LOG.sequence(0)], max_length=20)
    alone = collate([LOG.sequence(1)], max_length=20)
    assert torch.equal(model.score_all(together)[0], model.score_all(alone)[0])


@pytest.mark.parametrize(("cells", "pairs"), [(2**24, 2**22), (14, 1), (1, 10)])
def test_counting_in_blocks_counts_the_same(monkeypatch: pytest.MonkeyPatch, cells: int, pairs: int) -> None:
    monkeypatch.setattr(pair_counts, "_MAX_CELLS", cells)
    monkeypatch.setattr(pair_counts, "_MAX_PAIRS", pairs)
    rng = np.random.default_rng(0)
    rows = [list(rng.integers(1, 7, length)) for length in (9, 1, 4, 12)]
    log = make_log(rows, num_items=7)
    expected = np.zeros((7, 7))
    for row in rows:
        for at, one in enumerate(row):
            for distance in (1, -1, 3):
                if 0 <= at + distance < len(row):
                    expected[one - 1, row[at + distance] - 1] += 1
    blocks = list(count_pairs(log, (1, -1, 3)))
    assert np.array_equal(np.concatenate([counts for _, counts in blocks]), expected)
    assert [first for first, _ in blocks] == list(range(0, 7, max(1, min(7, cells // 7))))


@pytest.mark.parametrize("name", ["markov", "item_knn"])
def test_what_has_no_embeddings_says_so(name: str) -> None:
    model = _fitted(name)
    with pytest.raises(ValueError, match="can be evaluated but not served"):
        model.item_embeddings()
    with pytest.raises(ValueError, match="can be evaluated but not served"):
        model.user_embedding(_ask(1))
    with pytest.raises(TypeError, match="counted by fit"):
        model.training_loss(_ask(1))


@pytest.mark.parametrize(("name", "foreseen"), [("markov", True), ("item_knn", False), ("popularity", False)])
def test_a_floor_is_trained_saved_and_evaluated_like_any_model(
    cyclic_log: Interactions, tmp_path: Path, name: str, foreseen: bool
) -> None:
    """Item m is always followed by m + 1: certain for Markov, not so for those that know no direction."""
    split = leave_one_out(cyclic_log)
    metrics = train(
        split, model_name=name, model_config={}, settings=TrainingSettings(), out=tmp_path / "run"
    )
    loaded = load_checkpoint(tmp_path / "run")
    again = metrics_of_ranks(rank_targets(loaded.model, split.test))
    for perfect in (metrics["validation/recall_at_2"] == 1.0, again["recall_at_2"] == 1.0):
        assert perfect == foreseen
    resumed = train(
        split,
        model_name=name,
        model_config={},
        settings=TrainingSettings(),
        out=tmp_path / "run",
        resume=True,
    )
    assert resumed == metrics
    state = json.loads((tmp_path / "run" / "state" / "run.json").read_text())["state"]
    assert (state["epoch"], state["finished"]) == (1, True)


def test_popularity_is_served_and_the_others_refuse(cyclic_log: Interactions, tmp_path: Path) -> None:
    split = leave_one_out(cyclic_log)
    store = Store(str(tmp_path / "store"))
    for name in ("popularity", "markov"):
        out = tmp_path / name
        train(split, model_name=name, model_config={}, settings=TrainingSettings(), out=out)
    bundle_id = build_bundle(load_checkpoint(tmp_path / "popularity"), store)
    bundle = load_bundle(tmp_path / "store" / bundle_id)
    answer = recall_sequences(bundle.model, bundle.index, [cyclic_log.sequence(0)], [0], top_k=5)
    counts = np.bincount(split.train.item_index, minlength=46)[1:]
    assert answer.item_index[0].tolist() == (np.argsort(-counts, kind="stable")[:5] + 1).tolist()
    with pytest.raises(ValueError, match="Markov scores items without embeddings"):
        build_bundle(load_checkpoint(tmp_path / "markov"), store)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="max_neighbours must be at least 1, got 0"):
        MarkovConfig(max_neighbours=0)
    with pytest.raises(ValueError, match=r"recency must be in \(0, 1\], got 0"):
        ItemKNNConfig(recency=0)
    assert not dataclasses.fields(PopularityConfig)
    for model in (Popularity(PopularityConfig(), 3), Markov(MarkovConfig(), 3), ItemKNN(ItemKNNConfig(), 3)):
        assert not [parameter for parameter in model.parameters() if parameter.requires_grad]
