"""What the search may choose for each model: one range for what models share, a few of each one's own.

Every model is given the same ranges for the same things and the same number of trials, of which the
first is its defaults. The size of the embeddings is not searched: it is what an index costs, and the
same for all.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.registry import complete_config


@dataclass(frozen=True)
class Choice:
    """One of the values, all alike."""

    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]


@dataclass(frozen=True)
class LogUniform:
    """A number whose logarithm is uniform, to two digits."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return float(f"{value:.2g}")


Range = Choice | LogUniform

TRAINING: dict[str, Range] = {
    "learning_rate": LogUniform(3e-4, 6e-3),
    "batch_size": Choice((8, 16, 32, 64)),
    "weight_decay": Choice((0.0, 1e-4, 1e-2)),
}

ANY_MODEL: dict[str, Range] = {
    "max_length": Choice((50, 100, 200)),
    "dropout": Choice((0.1, 0.2, 0.3, 0.4, 0.5)),
    "num_layers": Choice((1, 2, 3)),
    "num_heads": Choice((1, 2, 4)),
    "feed_forward_hidden": Choice((128, 256)),
}
"""For every model that has the setting."""

OWN: dict[str, dict[str, Range]] = {
    "t2diff": {
        "session_length": Choice((5, 10, 20)),
        "drift_scale": LogUniform(0.03, 1.0),
        "kl_weight": Choice((1.0, 10.0)),
        "activation_hidden": Choice((16, 32, 64)),
    },
    "sasrec": {"positions": Choice(("absolute", "relative")), "normalize_inputs": Choice((False, True))},
    "gru4rec": {"hidden": Choice((64, 128, 256))},
    "caser": {
        "window": Choice((3, 5, 7, 9)),
        "num_horizontal": Choice((8, 16, 32)),
        "num_vertical": Choice((2, 4, 8)),
        "num_following": Choice((1, 2, 3)),
        "output_items": Choice(("shared", "own")),
    },
    "bert4rec": {"mask_share": Choice((0.1, 0.2, 0.4, 0.6)), "mask_last_share": Choice((0.0, 0.1, 0.2))},
    "dat": {
        "pooling": Choice(("recency", "mean")),
        "temperature": LogUniform(0.03, 0.3),
        "mimic_user_weight": LogUniform(0.05, 2.0),
        "mimic_item_weight": LogUniform(0.05, 2.0),
    },
    "mamba4rec": {"state_dim": Choice((16, 32)), "expansion": Choice((1, 2))},
    "contrastvae": {
        "kl_weight": LogUniform(0.01, 1.0),
        "contrast_weight": LogUniform(0.01, 1.0),
        "augmentation": Choice(("variational", "model")),
        "latent": Choice(("drawn", "shifted")),
    },
    "stosa": {"margin_weight": LogUniform(5e-4, 0.05)},
    "diffurec": {"uncertainty": LogUniform(1e-4, 1e-2), "embedding_dropout": Choice((0.1, 0.3, 0.5))},
    "comirec": {"num_interests": Choice((2, 4, 8)), "attention_hidden": Choice((64, 256))},
    "item_knn": {
        "max_length": Choice((5, 10, 20, 50)),
        "window": Choice((5, 10, 20, 50)),
        "shrinkage": LogUniform(1.0, 200.0),
        "recency": Choice((0.6, 0.7, 0.8, 0.9, 1.0)),
    },
    "markov": {"backoff": LogUniform(10.0, 10_000.0)},
}


def model_space(model: str) -> dict[str, Range]:
    """The ranges of a model's settings.   Raises ValueError for a model that is not registered."""
    fields = {setting.name for setting in dataclasses.fields(complete_config(model, {}))}
    shared = {name: values for name, values in ANY_MODEL.items() if name in fields}
    return {**shared, **OWN.get(model, {})}


def draw_settings(model: str, trial: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model settings, training settings) of a trial; equal arguments, equal trial; 0 is the defaults."""
    if trial == 0:
        return {}, {}
    rng = np.random.default_rng([seed, trial])
    training = {name: values.draw(rng) for name, values in TRAINING.items()}
    return {name: values.draw(rng) for name, values in model_space(model).items()}, training
