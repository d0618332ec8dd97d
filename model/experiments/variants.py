"""Every named set of settings that models are compared under, in one place.

A spec is `model` or `model:variant`, several variants joined by `+` (`sasrec:lag+n200`), later ones over
earlier ones. A file of one's own adds to the table (TOML, `--variants`):

    [sasrec.wide.model]
    embedding_dim = 128
    [sasrec.wide.training]
    batch_size = 8
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.registry import complete_config
from model.training_settings import TrainingSettings


@dataclass(frozen=True)
class Variant:
    """Settings over a model's and the trainer's defaults."""

    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


VariantTable = Mapping[str, Mapping[str, Variant]]
"""model -> variant -> settings"""

ANY_MODEL: dict[str, Variant] = {
    "lag": Variant({"time_lag": True}),
    "no_lag": Variant({"time_lag": False}),
    "n50": Variant({"max_length": 50}),
    "n200": Variant({"max_length": 200}),
    "exclude_seen": Variant({"exclude_seen": True}),
    "last_position": Variant(training={"targets_per_window": 1}),
    "epochs_1": Variant(training={"epochs": 1}),  # with one target a window, seven times the updates of five
    "epochs_18": Variant(training={"epochs": 18}),  # the time of ten epochs of `t2diff:stopped`, for SASRec
    "epochs_21": Variant(training={"epochs": 21}),  # the time of ten epochs of T2Diff, for SASRec
    "epochs_40": Variant(training={"epochs": 40}),
    "epochs_160": Variant(training={"epochs": 160}),  # for BERT4Rec, whose published best epoch is the 197th
}
"""For every model that has the setting."""

_STOPPED = {"behaviour_gradient": False}
"""Where x̂ holds no x_n, or as it was before the setting was there: what was run then is found again."""

VARIANTS: dict[str, dict[str, Variant]] = {
    "t2diff": {
        # what the diffusion is worth
        "learned_token": Variant({"predicted_next": "learned_token", **_STOPPED}),  # mixed attention only
        "last_behaviour": Variant({"predicted_next": "last_behaviour"}),  # no U-Net, the last behaviour
        "regressed": Variant({"predicted_next": "regressed"}),  # the same U-Net without noise
        "without_drift": Variant({"drift_preparation": False, **_STOPPED}),
        "noised_truth": Variant({"predicted_next": "noised_truth", **_STOPPED}),  # Algorithm 1's x̂
        "literal": Variant(
            {
                "predicted_next": "noised_truth",
                "unet_padding": "same",
                "readout": "mean",
                "history_attention": "activation_unit",
                "drift_scale": 1.0,
                "time_lag": False,
                **_STOPPED,
            },
            {"targets_per_window": 1},
        ),
        # Tables 3 and 4
        "linear": Variant({"schedule": "linear"}),
        "log": Variant({"schedule": "log"}),
        "steps_10": Variant({"num_steps": 10}),
        "steps_200": Variant({"num_steps": 200}),
        # choices that the paper leaves open
        "kl_weight_10": Variant({"kl_weight": 10.0}),
        "drift_scale_1": Variant({"drift_scale": 1.0}),
        "drift_scale_03": Variant({"drift_scale": 0.3}),
        "mean_readout": Variant({"readout": "mean"}),
        "activation_unit": Variant({"history_attention": "activation_unit"}),
        "gap_session": Variant({"session_gap_seconds": 1_800}),
        "session_5": Variant({"session_length": 5}),
        "session_20": Variant({"session_length": 20}),
        # ideas beyond the paper
        "intent_loss": Variant({"intent_loss_weight": 0.5}),
        "stopped": Variant(_STOPPED),  # L_TOWER does not reach x_n within x̂
        "detached": Variant(  # the paper's stop-gradient in full: the U-Net for L_KL alone
            {"tower_gradient": False, "num_training_steps": 1, **_STOPPED}
        ),
        "wide_unet": Variant({"unet_channels": (64, 96, 96)}),
        "routes_4": Variant({"num_routes": 4}),
        "routes_8": Variant({"num_routes": 8}),
    },
    # "paper_loss": the loss of the model's own paper, where it is not the full softmax
    # "published": the rest of its published form as well
    "sasrec": {
        "paper_loss": Variant({"loss": "binary"}),
        "modern": Variant({"max_length": 200, "positions": "relative", "normalize_inputs": True}),
    },
    "gru4rec": {"paper_loss": Variant({"loss": "top1"}), "bpr": Variant({"loss": "bpr"})},
    "caser": {
        "paper_loss": Variant({"loss": "binary"}),
        "published": Variant({"loss": "binary", "output_items": "own", "num_following": 3}),
    },
    "dat": {
        "paper_loss": Variant({"loss": "binary", "temperature": 1.0}),
        "published": Variant({"loss": "binary", "temperature": 1.0, "num_layers": 2}),
    },
    "contrastvae": {
        "paper_loss": Variant({"loss": "binary"}),
        "published": Variant({"loss": "binary", "latent": "shifted", "kl_weight": 0.2}),
    },
    "stosa": {"paper_loss": Variant({"loss": "ranking"})},
    "diffurec": {"last_loss": Variant({"supervision": "last"})},
    "comirec": {
        name: Variant({"num_interests": count}) for name, count in (("routes_1", 1), ("routes_8", 8))
    },
}


def resolve(spec: str, own: VariantTable | None = None) -> tuple[str, str, Variant]:
    """(model, variant, settings) of a spec.

    Raises ValueError for an unknown model, variant or setting, naming what is known.
    """
    model, _, variant = spec.partition(":")
    known = variants_of(model, own)
    chosen = Variant()
    for part in variant.split("+") if variant else []:
        if part not in known:
            raise ValueError(f"model {model!r} has no variant {part!r}; it has {', '.join(known) or 'none'}")
        chosen = Variant({**chosen.model, **known[part].model}, {**chosen.training, **known[part].training})
    complete_config(model, chosen.model)
    check_training_settings(chosen.training)
    return model, variant, chosen


def variants_of(model: str, own: VariantTable | None = None) -> dict[str, Variant]:
    """The variants of one model, by name.   Raises ValueError for a model that is not registered."""
    fields = {setting.name for setting in dataclasses.fields(complete_config(model, {}))}
    shared = {name: variant for name, variant in ANY_MODEL.items() if variant.model.keys() <= fields}
    return {**shared, **VARIANTS.get(model, {}), **(own or {}).get(model, {})}


def read_variants(path: Path) -> dict[str, dict[str, Variant]]:
    """A table of one's own.   Raises ValueError for a file that is not one."""
    try:
        tables = tomllib.loads(Path(path).read_text())
        return {
            model: {name: Variant(**settings) for name, settings in variants.items()}
            for model, variants in tables.items()
        }
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"variants: {path} is not a table of [model.variant.model] and [model.variant.training] ({error})"
        ) from error


def check_training_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting that training does not have, or that is not a recipe's to choose."""
    choosable = {setting.name for setting in dataclasses.fields(TrainingSettings)} - {
        "seed",
        "device",
        "num_threads",
        "save_every_updates",
    }
    for name in settings:
        if name not in choosable:
            raise ValueError(
                f"a recipe has no training setting {name!r}; it has {', '.join(sorted(choosable))}"
            )
