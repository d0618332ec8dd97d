"""Parts gone wrong: embeddings, towers, vocabularies and indices that are not what they should be."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from index_builder.ann import AnnIndex, build_index
from index_builder.canary import CanaryCase, record_canary
from loadtest.stress.gate_ground import Ground
from loadtest.stress.gate_nights import CONFIG, SASREC_CONFIG, Parts, changed, exported, parts_of, train_night
from model.baselines.floors import Popularity
from model.registry import build_model
from model.sessions import lag_bucket

TABLE = "item_table.weight"


def table_of(ground: Ground) -> torch.Tensor:
    return ground.good.model.state_dict()[TABLE].clone()  # (M + 1, D)


def with_table(ground: Ground, table: torch.Tensor) -> Parts:
    return exported(ground.good, changed(ground.good.model, **{"item_table__weight": table}))


def shuffled_embeddings(ground: Ground) -> Parts:
    table = table_of(ground)
    order = torch.randperm(len(table) - 1, generator=torch.Generator().manual_seed(0))
    return with_table(ground, torch.cat([table[:1], table[1:][order]]))


def item_ids_shifted_by_one(ground: Ground) -> Parts:
    ids = ground.good.item_ids
    return replace(ground.good, item_ids=[*ids[1:], ids[0]])


def scaled_norms(ground: Ground) -> Parts:
    return with_table(ground, table_of(ground) * 10)


def one_exploded_item(ground: Ground) -> Parts:
    table = table_of(ground)
    table[7] *= 1_000
    return with_table(ground, table)


def zeroed_rows(ground: Ground) -> Parts:
    """The twentieth of the items that is least popular."""
    table, counts = table_of(ground), np.bincount(ground.night.split.train.item_index)[1:]
    table[torch.from_numpy(np.argsort(counts)[: len(counts) // 20] + 1)] = 0
    return with_table(ground, table)


def nan_item(ground: Ground) -> Parts:
    """A row of NaN in the table: the index is of the sound one, for the builder would refuse this one."""
    table = table_of(ground)
    table[3] = float("nan")
    model = changed(ground.good.model, **{"item_table__weight": table})
    embeddings = ground.good.embeddings.copy()
    embeddings[2] = np.nan
    index = flat_over(embeddings, ground.good)
    return replace(ground.good, model=model, embeddings=embeddings, index=index, canary=canary_of(ground))


def nan_in_user_tower(ground: Ground) -> Parts:
    name, weight = tower_weight(ground)
    broken = weight.clone()
    broken.view(-1)[0] = float("nan")
    parts = replace(ground.good, model=changed(ground.good.model, **{name: broken}))
    return replace(parts, canary=canary_of(ground))


def overflowing_user_tower(ground: Ground) -> Parts:
    """Every weight finite, no answer is."""
    name, weight = tower_weight(ground)
    parts = replace(ground.good, model=changed(ground.good.model, **{name: weight * 1e38}))
    return replace(parts, canary=canary_of(ground))


def wrong_dimension(ground: Ground) -> Parts:
    return train_night(ground.night, None, seed=1, epochs=4, config={**CONFIG, "embedding_dim": 24})


def popular_list_only(ground: Ground) -> Parts:
    train = ground.night.split.train
    model = build_model("popularity", {}, train.num_items)
    assert isinstance(model, Popularity)
    model.fit(train)
    return parts_of(model.eval(), {}, ground.night, ground.good.popular, name="popularity")


def one_answer_for_all(ground: Ground) -> Parts:
    """Every item a little towards one direction, popular ones further: answers go the popular way."""
    table = table_of(ground)
    counts = torch.from_numpy(np.bincount(ground.night.split.train.item_index)[1:].astype(np.float32))
    mean = table[1:].mean(dim=0)
    table[1:] = (
        0.05 * table[1:] + (counts / counts.max())[:, None] * mean / mean.norm() * table[1:].norm() / 20
    )
    return with_table(ground, table)


def untrained_weights(ground: Ground) -> Parts:
    torch.manual_seed(5)
    train = ground.night.split.train
    model = build_model("t2diff", CONFIG, train.num_items).eval()
    return exported(ground.good, model)


def user_tower_of_another_build(ground: Ground) -> Parts:
    other = ground.other.model.state_dict()
    own = ground.good.model.state_dict()
    model = copy.deepcopy(ground.good.model)
    model.load_state_dict(other | {TABLE: own[TABLE]})
    return exported(ground.good, model.eval())


def noisy_weights(ground: Ground) -> Parts:
    """A learning rate too high at the end: every weight of the user tower is off by its own spread."""
    generator = torch.Generator().manual_seed(0)
    state = ground.good.model.state_dict()
    for name, weight in state.items():
        if name != TABLE and weight.is_floating_point() and weight.ndim > 1:
            noise = torch.randn(weight.shape, generator=generator)
            state[name] = weight + weight.std() * noise
    model = copy.deepcopy(ground.good.model)
    model.load_state_dict(state)
    return exported(ground.good, model.eval())


def duplicated_items(ground: Ground) -> Parts:
    """A fifth of the rows hold another item's embedding."""
    table = table_of(ground)
    fifth = (len(table) - 1) // 5
    table[-fifth:] = table[1 : fifth + 1]
    return with_table(ground, table)


def collapsed_embeddings(ground: Ground) -> Parts:
    table = table_of(ground)
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    return with_table(ground, table[1:].norm(dim=1).median() * (table[5] / table[5].norm() + 1e-3 * noise))


def truncated_vocabulary(ground: Ground) -> Parts:
    """The last quarter of the rows was not written."""
    return cut_to(ground, np.arange(len(ground.good.item_ids) * 3 // 4))


def cut_to(ground: Ground, kept: np.ndarray) -> Parts:
    """The good build with these rows of its items alone; the model is cut to match.   kept: ascending"""
    good, index_of = ground.good, np.zeros(len(ground.good.item_ids) + 1, dtype=np.int64)
    index_of[kept + 1] = np.arange(1, len(kept) + 1)
    state, rows = good.model.state_dict(), torch.from_numpy(kept)
    state[TABLE] = torch.cat([state[TABLE][:1], state[TABLE][1:][rows]])
    state["sampling_probability"] = state["sampling_probability"][rows]
    model = build_model("t2diff", CONFIG, len(kept))
    model.load_state_dict(state)
    ids = [good.item_ids[row] for row in kept.tolist()]
    known = set(ids)
    sequences = []
    for entry in good.sequences:
        index = index_of[entry.item_index]
        sequences.append(entry._replace(item_index=index[index > 0], timestamp=entry.timestamp[index > 0]))
    parts = replace(
        good,
        item_ids=ids,
        popular=[item_id for item_id in good.popular if item_id in known],
        sequences=[entry for entry in sequences if len(entry.item_index)],
    )
    return exported(parts, model.eval())


def index_of_other_embeddings(ground: Ground) -> Parts:
    index = build_index(ground.other.embeddings, kind="flat_fp16", metric=ground.good.model.metric)
    return replace(ground.good, index=searching(index, ground.good.embeddings))


def embeddings_of_another_build(ground: Ground) -> Parts:
    """The item embeddings written are last night's, of the same items."""
    row_of = {item_id: row for row, item_id in enumerate(ground.last.item_ids)}
    embeddings = ground.good.embeddings.copy()
    for row, item_id in enumerate(ground.good.item_ids):
        if item_id in row_of:
            embeddings[row] = ground.last.embeddings[row_of[item_id]]
    return replace(ground.good, embeddings=embeddings, index=flat_over(embeddings, ground.good))


def canary_of_another_build(ground: Ground) -> Parts:
    return replace(ground.good, canary=canary_of(ground, of=ground.other))


def less_popular_rows_shuffled(ground: Ground) -> Parts:
    """Two thirds of the table, the items that are seldom asked for, changed places among themselves."""
    table, counts = table_of(ground), np.bincount(ground.night.split.train.item_index)[1:]
    rows = torch.from_numpy(np.argsort(counts)[: len(counts) * 2 // 3] + 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    table[rows] = table[rows[order]]
    return with_table(ground, table)


def nan_in_an_idle_weight(ground: Ground) -> Parts:
    """NaN where no canary reads it: the probabilities that the next night's training would draw by."""
    weights = ground.good.model.state_dict()["sampling_probability"].clone()
    weights[0] = float("nan")
    return replace(ground.good, model=changed(ground.good.model, sampling_probability=weights))


def nan_in_the_export(ground: Ground) -> Parts:
    """The weights are sound, one row of the exported embeddings is not; no canary meets that item."""
    embeddings = ground.good.embeddings.copy()
    shown = {item_id for case in canary_of(ground) for item_id in case.candidates}
    row = next(row for row, item_id in enumerate(ground.good.item_ids) if item_id not in shown)
    embeddings[row] = np.nan
    return replace(ground.good, embeddings=embeddings, index=flat_over(embeddings, ground.good))


def rare_items_alike(ground: Ground) -> Parts:
    """A seventh of the items, the rarest, were all given the first one's row."""
    table, counts = table_of(ground), np.bincount(ground.night.split.train.item_index)[1:]
    rows = torch.from_numpy(np.argsort(counts)[: len(counts) // 7] + 1)
    table[rows] = table[rows[0]].clone()
    return with_table(ground, table)


def popular_items_lost(ground: Ground) -> Parts:
    """Seven in a hundred items are gone, those that everybody asks for."""
    counts = np.bincount(ground.night.split.train.item_index)[1:]
    return cut_to(ground, np.sort(np.argsort(-counts)[len(counts) * 7 // 100 :]))


def one_pause_overflows(ground: Ground) -> Parts:
    """The embedding of one length of pause grew beyond measure: users who come back after it get nothing.

    Of the pauses that no canary has, the one that most of the newest day's users have.
    """
    day = ground.night.newest_day
    last = torch.from_numpy(day.interactions.timestamp[day.end - 1])
    pauses = lag_bucket(torch.from_numpy(day.target_time), last)
    for case in ground.good.sequences:
        request, before = torch.tensor(case.request_time), torch.tensor(int(case.timestamp[-1]))
        pauses = pauses[pauses != lag_bucket(request, before)]
    weight = ground.good.model.state_dict()["attention.of_gap.weight"].clone()
    weight[pauses.mode().values] = 3e38
    return replace(ground.good, model=changed(ground.good.model, attention__of_gap__weight=weight))


def index_searched_too_narrowly(ground: Ground) -> Parts:
    """An inverted file of which a query looks at one list."""
    index = build_index(ground.good.embeddings, kind="ivf_flat", metric=ground.good.model.metric)
    index.width = 1
    return replace(ground.good, index=index)


def another_model(ground: Ground) -> Parts:
    """A sound model of another kind, from a job that read the wrong settings."""
    return train_night(ground.night, None, seed=1, epochs=4, config=SASREC_CONFIG, name="sasrec")


def flat_over(embeddings: np.ndarray, like: Parts) -> AnnIndex:
    """A flat index over embeddings of any kind, even those that `build_index` refuses."""
    sound = build_index(np.nan_to_num(embeddings), kind="flat", metric=like.model.metric)
    return searching(sound, embeddings)


def searching(index: AnnIndex, embeddings: np.ndarray) -> AnnIndex:
    """The same index beside other embeddings."""
    return AnnIndex(index._index, kind=index.kind, metric=index.metric, embeddings=embeddings)


def canary_of(ground: Ground, of: Parts | None = None) -> list[CanaryCase]:
    """The answers of a sound build, where the bad one could not record any or shall not."""
    parts = of or ground.good
    return record_canary(parts.model, parts.index, parts.item_ids, parts.sequences)


def tower_weight(ground: Ground) -> tuple[str, torch.Tensor]:
    """A matrix of the user tower, and its name as `changed` takes it."""
    state = ground.good.model.state_dict()
    name = next(name for name, weight in state.items() if name.startswith("attention") and weight.ndim == 2)
    return name.replace(".", "__"), state[name]
