"""Which engine is taken, what is said about it, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from model.batch import collate
from model.engines.tower_engine import build_tower_engine
from model.registry import build_model
from tests.model.engines.conftest import (
    SMALL,
    error,
    library,
    ragged,
    reference,
    sequences,
    tower_model,
)


def test_auto_takes_the_best_variant_of_this_processor() -> None:
    assert build_tower_engine(tower_model(**SMALL)).name == f"fused-{library().variants[0]}"


def test_fused_fp32_never_takes_bf16() -> None:
    library()
    name = build_tower_engine(tower_model(**SMALL), kind="fused_fp32").name
    assert name.startswith("fused-")
    assert "bf16" not in name


def test_without_the_library_auto_is_exact_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "t2diff.engine"):
        engine = build_tower_engine(tower_model(**SMALL), native_folder=tmp_path)
    assert engine.name == "exact"
    assert "install a C++ compiler" in caplog.text


def test_a_library_that_cannot_be_loaded_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "native_tower.so").write_bytes(b"not a library")
    with caplog.at_level(logging.WARNING, "t2diff.engine"):
        engine = build_tower_engine(tower_model(**SMALL), native_folder=tmp_path)
    assert engine.name == "exact"
    assert "native_tower.so" in caplog.text


def test_fused_without_the_library_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for kind in ("fused", "fused_fp32"):
        with pytest.raises(ValueError, match=f"tower_engine {kind}.*compiler.*exact"):
            build_tower_engine(tower_model(**SMALL), kind=kind, native_folder=tmp_path)  # type: ignore[arg-type]


def test_models_without_a_fast_engine_run_plainly() -> None:
    model = build_model("sasrec", {}, 30).eval()
    assert build_tower_engine(model).name == "eager"
    with pytest.raises(ValueError, match="tower_engine fused runs T2Diff only, this is SASRec"):
        build_tower_engine(model, kind="fused")
    with pytest.raises(ValueError, match="num_inference_steps can be chosen for T2Diff only"):
        build_tower_engine(model, num_inference_steps=5)


def test_wrong_choices_are_named() -> None:
    model = tower_model(**SMALL)
    with pytest.raises(ValueError, match=r"tower_engine must be one of auto, eager.*'fast'"):
        build_tower_engine(model, kind="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_inference_steps must be at most num_steps = 6, got 7"):
        build_tower_engine(model, num_inference_steps=7)
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, got 0"):
        build_tower_engine(model, num_inference_steps=0)
    with pytest.raises(ValueError, match=r"sampler must be one of ddpm, ddim, got 'ode'"):
        build_tower_engine(model, sampler="ode")


def test_a_model_in_training_is_refused() -> None:
    model = tower_model(**SMALL).train()
    try:
        for kind in ("eager", "exact", "auto"):
            with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
                build_tower_engine(model, kind=kind)  # type: ignore[arg-type]
    finally:
        model.eval()


def test_a_model_that_native_code_cannot_hold_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    library()
    deep = tower_model(**SMALL, num_layers=9)
    with caplog.at_level(logging.WARNING, "t2diff.engine"):
        assert build_tower_engine(deep).name == "exact"
    assert "num_layers is 9" in caplog.text
    with pytest.raises(ValueError, match=r"num_layers is 9.*use tower_engine exact"):
        build_tower_engine(deep, kind="fused")


@pytest.mark.parametrize("kind", ["eager", "exact", "auto"])
def test_sampling_can_be_chosen_apart_from_the_model(kind: str) -> None:
    """Fewer steps and DDIM give what a model of those settings gives; the model itself is not changed."""
    model = tower_model(**SMALL)
    asked = tower_model(**SMALL, num_inference_steps=3, sampler="ddim")
    batch = ragged(model)
    keys = list(range(len(batch.length)))
    engine = build_tower_engine(model, kind=kind, num_inference_steps=3, sampler="ddim")  # type: ignore[arg-type]
    assert error(engine.user_embeddings(batch, keys), reference(asked, batch, keys)) < 5e-3
    assert model.config.num_inference_steps is None
    assert model.config.sampler == "ddpm"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_exact_engine_on_a_gpu() -> None:
    """Not run yet: no GPU was at hand."""
    model = tower_model()
    batch = collate(sequences([50, 3]), max_length=50)
    expected = reference(model, batch, [1, 2])
    try:
        engine = build_tower_engine(model.to("cuda"))
        assert engine.name == "exact"
        assert error(engine.user_embeddings(batch, [1, 2]).cpu(), expected) < 1e-4
    finally:
        model.to("cpu")
