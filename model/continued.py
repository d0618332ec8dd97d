"""A checkpoint to go on from: the log in its numbering, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint import load_checkpoint
from model.data.interactions import Interactions
from model.data.newest_day import with_vocabulary
from model.registry import complete_config
from model.warm_start import WarmStart, items_beside


def continue_checkpoint(
    log: Interactions, path: Path, *, model_name: str, model_config: Mapping[str, Any]
) -> tuple[Interactions, WarmStart]:
    """The log in the numbering of the checkpoint at `path`, and the warm start from it.

    Raises CheckpointError for a checkpoint that cannot be read, ValueError for one of another model.
    """
    checkpoint = load_checkpoint(path)
    if not same_model(checkpoint.model_name, checkpoint.model_config, model_name, model_config):
        raise ValueError(
            f"continue_from: {path} holds a {checkpoint.model_name} of other settings than asked for: "
            "give the same --model and --set, or train from scratch"
        )
    index_of = {item_id: row for row, item_id in enumerate(checkpoint.item_ids, start=1)}
    log = with_vocabulary(log, checkpoint.item_ids, index_of)
    start = WarmStart(
        source=f"checkpoint of {checkpoint.dataset_id[:16]}",
        item_ids=checkpoint.item_ids,
        weights=checkpoint.model.state_dict(),
        beside=items_beside(log, np.arange(log.num_items) >= len(checkpoint.item_ids)),
    )
    return log, start


def same_model(
    name: str, config: Mapping[str, Any], other_name: str, other_config: Mapping[str, Any]
) -> bool:
    """Whether two models have the same name and, defaults filled in, the same settings."""
    if name != other_name:
        return False
    return complete_config(name, dict(config)) == complete_config(name, dict(other_config))
