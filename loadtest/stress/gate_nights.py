"""Made-up nights for the gates: a log that grows by a day, a model that goes on from last night's, a bundle.

Small enough that a night takes seconds. What is trained, asked and written is the real thing; only the way
from parts to a bundle is without the builder's own checks, so that bad parts reach the gates.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from index_builder.ann import AnnIndex, build_index
from index_builder.bundle import write_bundle_files
from index_builder.bundle_files import seal
from index_builder.canary import CanaryCase, record_canary
from index_builder.embed_items import embed_items
from index_builder.log_summary import of_newest_day, summarise_log
from model.batch import Sequence as UserSequence
from model.data.dataset import EvaluationSet, Split, leave_one_out
from model.data.synthetic import DriftLog, DriftSettings, generate_drift_log
from model.data.windows import TrainingWindows
from model.registry import build_model
from model.two_tower import TwoTower

DAY_S = 86_400
END = 1_800_000_000  # of every made-up log, unix seconds
CONFIG: dict[str, Any] = {
    "embedding_dim": 16,
    "max_length": 16,
    "session_length": 6,
    "num_steps": 4,
    "num_layers": 1,
    "unet_channels": [8, 12, 12],
    "unet_step_channels": 8,
    "feed_forward_hidden": 32,
    "activation_hidden": 8,
    "dropout": 0.1,
}
SASREC_CONFIG: dict[str, Any] = {
    "embedding_dim": 16,
    "max_length": 16,
    "num_layers": 1,
    "feed_forward_hidden": 32,
    "dropout": 0.1,
    "normalize_inputs": True,
    "time_lag": True,
}
_NUM_CANARIES = 4
_NUM_POPULAR = 100
_BATCH_SIZE = 32
_DRIFT = DriftSettings(scatter=0.35)


@dataclass(frozen=True, eq=False)
class Night:
    """What is known when a build begins.   newest_day: the questions   data: the manifest's section"""

    split: Split
    newest_day: EvaluationSet
    data: dict[str, Any]
    now: int


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything of a bundle before it is written; a bad build is one with a part replaced.

    item_ids, embeddings, index, canary: as of `write_bundle_files`   metric: what the manifest says
    canary: None: recorded when written   index_kind: what the manifest says
    """

    model: TwoTower
    model_name: str
    model_config: dict[str, Any]
    item_ids: list[str]
    embeddings: np.ndarray
    index: AnnIndex
    popular: list[str]
    sequences: list[UserSequence]
    data: dict[str, Any]
    metric: str = "inner_product"
    canary: list[CanaryCase] | None = None


def world_log(seed: int, *, num_users: int, num_items: int) -> DriftLog:
    """Weeks of one world's events, up to END."""
    return generate_drift_log(num_users=num_users, num_items=num_items, seed=seed, now=END, settings=_DRIFT)


def rows_of(log: DriftLog, chosen: np.ndarray) -> DriftLog:
    """The chosen events.   chosen: (R,) bool, or row numbers in the order wanted"""
    return replace(
        log,
        user=log.user[chosen],
        item=log.item[chosen],
        timestamp=log.timestamp[chosen],
        position=log.position[chosen],
    )


def until(log: DriftLog, moment: int) -> DriftLog:
    """What had happened by then."""
    return rows_of(log, log.timestamp <= moment)


def night_of(log: DriftLog, now: int) -> Night:
    """A night that has read `log`."""
    interactions = log.interactions()
    split = leave_one_out(interactions)
    return Night(split, of_newest_day(split.test, now=now), summarise_log(interactions, now=now), now)


def train_night(
    night: Night,
    last: Parts | None,
    *,
    seed: int,
    epochs: int,
    learning_rate: float = 5e-3,
    config: dict[str, Any] = CONFIG,
    name: str = "t2diff",
) -> Parts:
    """Train on the night's log, from the last night's weights where there are any."""
    torch.manual_seed(seed)
    train = night.split.train
    model = build_model(name, config, train.num_items)
    if last is not None:
        _continue_from(model, train.item_ids, last)
    counts = np.bincount(train.item_index, minlength=train.num_items + 1)[1:]  # (M,)
    model.observe_item_counts(torch.from_numpy(counts))
    windows = TrainingWindows(train, max_length=model.max_length, targets_per_window=model.max_length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    num_updates = epochs * len(windows.epoch(seed, 0, batch_size=_BATCH_SIZE)) + 1
    update = 0
    model.train()
    for epoch in range(epochs):
        for batch in windows.batches(seed, epoch, batch_size=_BATCH_SIZE):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * max(0.02, 1 - update / num_updates)
            loss = model.training_loss(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            update += 1
    model.eval()
    order = np.argsort(-counts, kind="stable")[:_NUM_POPULAR]
    return parts_of(model, config, night, [train.item_ids[item] for item in order.tolist()], name=name)


def parts_of(
    model: TwoTower, config: dict[str, Any], night: Night, popular: Sequence[str], *, name: str = "t2diff"
) -> Parts:
    """A bundle's parts from a model that knows the night's items."""
    validation = night.split.validation
    asked = np.unique(np.linspace(0, len(validation) - 1, _NUM_CANARIES).astype(int))
    sequences = [validation.sequence(question) for question in asked.tolist()]
    length = model.max_length
    parts = Parts(
        model=model,
        model_name=name,
        model_config=config,
        item_ids=list(night.split.train.item_ids),
        embeddings=np.empty(0),
        index=None,  # type: ignore[arg-type]
        popular=list(popular),
        sequences=[
            UserSequence(entry.item_index[-length:], entry.timestamp[-length:], entry.request_time)
            for entry in sequences
        ],
        data=night.data,
        metric=model.metric,
    )
    return exported(parts, model)


def exported(parts: Parts, model: TwoTower, *, index_kind: str = "flat") -> Parts:
    """The parts with another model, its embeddings and their index."""
    embeddings = embed_items(model)
    index = build_index(embeddings, kind=index_kind, metric=model.metric)
    return replace(parts, model=model, embeddings=embeddings, index=index)


def changed(model: TwoTower, **weights: torch.Tensor) -> TwoTower:
    """A copy of the model with some weights replaced; `__` stands for a dot in their names."""
    other = copy.deepcopy(model)
    state = other.state_dict()
    other.load_state_dict(state | {name.replace("__", "."): value for name, value in weights.items()})
    return other.eval()


def write_parts(parts: Parts, folder: Path, *, manifest: dict[str, Any] | None = None) -> Path:
    """Write and seal a bundle under `folder`, whatever its parts are worth; its path.

    manifest: entries that replace the true ones
    """
    staged = folder / f"staged-{uuid.uuid4().hex}"
    staged.mkdir(parents=True)
    canary = parts.canary
    if canary is None:
        canary = record_canary(parts.model, parts.index, parts.item_ids, parts.sequences)
    write_bundle_files(
        staged,
        model=parts.model,
        item_ids=parts.item_ids,
        item_embeddings=parts.embeddings,
        index=parts.index,
        popular=parts.popular,
        canary=canary,
    )
    said = {
        "build": uuid.uuid4().hex,
        "model": {"name": parts.model_name, "config": parts.model_config},
        "metric": parts.metric,
        "dataset_id": "0" * 64,
        "counts": {"items": len(parts.item_ids), "embedding_dim": parts.embeddings.shape[1]},
        "index": {"kind": parts.index.kind, "width": parts.index.width, "rescored": parts.index.rescored},
        "offline_metrics": {},
        "checks": [],
        "data": parts.data,
    }
    bundle_id = seal(staged, said | (manifest or {}))
    return staged.rename(folder / bundle_id)


def _continue_from(model: TwoTower, item_ids: list[str], last: Parts) -> None:
    """Last night's weights; a row of the item table follows its item's id, new items keep fresh ones."""
    old = last.model.state_dict()
    table = model.state_dict()["item_table.weight"].clone()  # (M + 1, D)
    old_row = {item_id: row for row, item_id in enumerate(last.item_ids, start=1)}
    pairs = [(row, old_row[item_id]) for row, item_id in enumerate(item_ids, start=1) if item_id in old_row]
    ours, theirs = (torch.tensor(rows) for rows in zip(*pairs, strict=True))
    table[ours] = old["item_table.weight"][theirs]
    state = model.state_dict()
    state |= {name: value for name, value in old.items() if value.shape == state[name].shape}
    model.load_state_dict(state | {"item_table.weight": table})
