from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from model.experiments.published import TABLE_2, TABLE_3, TABLE_4
from model.experiments.variants import VARIANTS, Variant, read_variants, resolve, variants_of
from model.registry import MODELS, build_model
from model.t2diff_config import PredictedNext, T2DiffConfig


@pytest.mark.parametrize("spec", [f"{model}:{variant}" for model in MODELS for variant in variants_of(model)])
def test_every_variant_can_be_built(spec: str) -> None:
    model, variant, settings = resolve(spec)
    assert f"{model}:{variant}" == spec
    assert build_model(model, settings.model, 50).num_items == 50


def test_variants_belong_to_models_that_exist() -> None:
    later = {"mamba4rec", "contrastvae", "stosa", "diffurec"}  # allowed to come after this table
    assert set(VARIANTS) <= set(MODELS) | later


def test_a_model_alone_is_its_defaults_and_a_sum_merges_from_left_to_right() -> None:
    assert resolve("t2diff") == ("t2diff", "", Variant())
    own = {
        "t2diff": {
            "a": Variant({"dropout": 0.1, "kl_weight": 2.0}, {"epochs": 3}),
            "b": Variant({"dropout": 0.4}),
        }
    }
    assert resolve("t2diff:a+b", own)[2] == Variant({"dropout": 0.4, "kl_weight": 2.0}, {"epochs": 3})
    assert resolve("t2diff:b+a", own)[2].model["dropout"] == 0.1


def test_the_time_lag_is_offered_to_whatever_has_it() -> None:
    assert resolve("sasrec:lag")[2].model == {"time_lag": True}
    assert resolve("t2diff:no_lag+n200")[2].model == {"time_lag": False, "max_length": 200}
    with pytest.raises(ValueError, match="no variant 'lag'"):
        resolve("caser:lag")


@pytest.mark.parametrize(
    ("spec", "words"),
    [("t3diff", "model must be one of"), ("t2diff:best", "no variant 'best'; it has .*learned_token")],
)
def test_unknown_names_are_answered_with_the_known_ones(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve(spec)


def test_a_file_adds_variants_and_its_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[sasrec.wide.model]\nembedding_dim = 128\n[sasrec.wide.training]\nbatch_size = 8\n")
    own = read_variants(file)
    assert resolve("sasrec:wide+n200", own)[2] == Variant(
        {"embedding_dim": 128, "max_length": 200}, {"batch_size": 8}
    )
    file.write_text("[sasrec.wide.model]\nwidth = 128\n")
    with pytest.raises(ValueError, match="no setting 'width'"):
        resolve("sasrec:wide", read_variants(file))
    file.write_text("[sasrec.wide.training]\nseed = 3\n")
    with pytest.raises(ValueError, match="no training setting 'seed'"):
        resolve("sasrec:wide", read_variants(file))
    for text in ("[sasrec.wide.modle]\na = 1\n", "sasrec = 3\n", "not toml"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"variants: .*own\.toml"):
            read_variants(file)


def test_what_can_stand_for_the_intent_has_a_variant_of_its_name() -> None:
    for name in get_args(PredictedNext):
        if name != T2DiffConfig().predicted_next:
            assert resolve(f"t2diff:{name}")[2].model["predicted_next"] == name


def test_the_papers_tables_are_as_printed() -> None:
    methods = [row.method for row in TABLE_2]
    assert len(methods) == 12
    best = {
        name: max(row.metrics("ml-1m")[name] for row in TABLE_2[:9]) for name in TABLE_2[0].metrics("ml-1m")
    }
    ours = TABLE_2[-1].metrics("ml-1m")
    gains = {name: round(100 * (ours[name] / best[name] - 1), 2) for name in best}
    assert gains == {"recall_at_2": 11.84, "recall_at_20": 7.53, "mrr_at_2": 15.47, "mrr_at_20": 22.27}
    kuairand = TABLE_2[-1].metrics("kuairand")
    best = {name: max(row.metrics("kuairand")[name] for row in TABLE_2[:9]) for name in kuairand}
    gains = {name: round(100 * (kuairand[name] / best[name] - 1), 2) for name in best}
    assert gains == {"recall_at_10": 5.48, "recall_at_100": 10.94, "mrr_at_10": 3.69, "mrr_at_100": 4.08}
    assert kuairand["recall_at_100"] == pytest.approx(0.025294)
    assert {row.spec: row.infer_ms for row in TABLE_4} == {
        "t2diff:steps_10": 0.22,
        "t2diff": 0.68,
        "t2diff:steps_200": 2.30,
    }
    assert TABLE_3[0].metrics("ml-1m")["mrr_at_20"] == 0.08677
    for row in (*TABLE_3, *TABLE_4):
        resolve(row.spec)
