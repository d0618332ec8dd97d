"""Which models exist, by name, and how each is built from its stored configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from model.baselines.bert4rec import BERT4Rec, BERT4RecConfig
from model.baselines.caser import Caser, CaserConfig
from model.baselines.comirec import ComiRec, ComiRecConfig
from model.baselines.contrastvae import ContrastVAE, ContrastVAEConfig
from model.baselines.dat import DAT, DATConfig
from model.baselines.diffurec import DiffuRec, DiffuRecConfig
from model.baselines.floors import (
    ItemKNN,
    ItemKNNConfig,
    Markov,
    MarkovConfig,
    Popularity,
    PopularityConfig,
)
from model.baselines.gru4rec import GRU4Rec, GRU4RecConfig
from model.baselines.mamba4rec import Mamba4Rec, Mamba4RecConfig
from model.baselines.sasrec import SASRec, SASRecConfig
from model.baselines.stosa import STOSA, STOSAConfig
from model.t2diff import T2Diff
from model.t2diff_config import T2DiffConfig
from model.two_tower import TwoTower

MODELS: dict[str, tuple[type, Callable[[Any, int], TwoTower]]] = {
    "t2diff": (T2DiffConfig, T2Diff),
    "sasrec": (SASRecConfig, SASRec),
    "gru4rec": (GRU4RecConfig, GRU4Rec),
    "caser": (CaserConfig, Caser),
    "bert4rec": (BERT4RecConfig, BERT4Rec),
    "dat": (DATConfig, DAT),
    "mamba4rec": (Mamba4RecConfig, Mamba4Rec),
    "contrastvae": (ContrastVAEConfig, ContrastVAE),
    "stosa": (STOSAConfig, STOSA),
    "diffurec": (DiffuRecConfig, DiffuRec),
    "comirec": (ComiRecConfig, ComiRec),
    "popularity": (PopularityConfig, Popularity),
    "markov": (MarkovConfig, Markov),
    "item_knn": (ItemKNNConfig, ItemKNN),
}


def build_model(name: str, config: dict[str, Any], num_items: int) -> TwoTower:
    """A freshly initialised model.

    config: fields of the model's configuration; those left out keep their defaults
    Raises ValueError for an unknown model or field, naming what is known.
    """
    return _lookup(name)[1](complete_config(name, config), num_items)


def complete_config(name: str, config: dict[str, Any]) -> Any:
    """The configuration dataclass of model `name` with `config` over its defaults."""
    config_class = _lookup(name)[0]
    known = {field.name for field in dataclasses.fields(config_class)}
    for field in config:
        if field not in known:
            raise ValueError(f"model {name!r} has no setting {field!r}; it has {', '.join(sorted(known))}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    defaults = config_class()
    for field, value in values.items():
        _check_kind(f"{name}.{field}", value, getattr(defaults, field))
    return config_class(**values)


def _check_kind(field: str, value: Any, default: Any) -> None:
    """A value must be of its default's kind; None and numbers are exchangeable where the default is None."""
    kind = (
        (int, type(None))
        if default is None
        else (int, float)
        if isinstance(default, float)
        else type(default)
    )
    if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise ValueError(f"setting {field} must be like {default!r}, got {value!r}")


def _lookup(name: str) -> tuple[type, Callable[[Any, int], TwoTower]]:
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name]
