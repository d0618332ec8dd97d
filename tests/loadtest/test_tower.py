"""`t2diff-loadtest tower`: the figures it gives and how it shows them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from index_builder.publish import Store
from loadtest import cli
from loadtest.errors import LoadtestError
from loadtest.tower_bench import bench_towers, runners_of
from loadtest.tower_table import tower_model, tower_table
from model.batch import Sequence, collate
from model.engines.native_library import native_library
from model.engines.tower_engine import build_tower_engine
from model.registry import build_model
from model.t2diff import T2Diff
from tests.untrained import build_untrained

TINY = {"embedding_dim": 8, "max_length": 6, "num_steps": 12, "session_length": 3, "unet_channels": (8, 8, 8)}


@pytest.fixture(scope="module")
def figures():
    torch.manual_seed(0)
    model = build_model("t2diff", TINY, 50).eval()
    assert isinstance(model, T2Diff)
    return bench_towers(model, rounds=2)


def test_figures_are_flat_and_agree_with_each_other(figures):
    json.dumps(figures, allow_nan=False)
    assert not [value for value in figures.values() if isinstance(value, dict | list)]
    for size in (1, 8, 32, 128):
        plain = figures[f"ms_per_sample_plain_b{size}"]
        assert figures[f"exact_over_eager_b{size}"] == pytest.approx(
            plain / figures[f"ms_per_sample_exact_b{size}"], rel=0.05
        )
    assert figures["engine_exact"] == "exact"
    assert {"cpu", "commit", "date", "rounds"} <= set(figures)


def test_figures_of_the_fused_tower(figures):
    if native_library() is None:
        pytest.skip("no C++ compiler here: the fused tower was not built")
    for size in (1, 8, 32, 128):
        assert figures[f"ms_per_sample_b{size}"] == figures[f"ms_per_sample_fused_b{size}"]
        assert figures[f"fused_over_eager_b{size}"] > 0
    assert figures["b1_over_b128"] > 0
    for steps in (5, 10):
        own = figures["ms_per_sample_fused_b128"]
        assert figures[f"ddim{steps}_over_ddpm50"] == pytest.approx(
            own / figures[f"ms_per_sample_ddim{steps}_b128"], rel=0.05
        )
    assert "ddim25_over_ddpm50" not in figures  # the model has 12 steps
    assert 0 < figures["peak_share_fp32"] < 1
    assert "bf16" not in figures["engine_fused_fp32"]
    assert ("peak_share_bf16" in figures) == figures["engine_fused"].endswith("bf16")


def test_fewer_steps_are_taken_by_ddim():
    if native_library() is None:
        pytest.skip("no C++ compiler here: the fused tower was not built")
    model = tower_model(None)
    batch = collate([Sequence(np.arange(1, 9), np.arange(8), 9)], max_length=model.max_length)
    for steps in (5, 10, 25):
        alone = build_tower_engine(model, kind="fused", num_inference_steps=steps, sampler="ddim")
        measured = runners_of(model)[f"ddim{steps}"].embed(batch, [3])
        assert torch.equal(measured, alone.user_embeddings(batch, [3]))


def test_the_table_shows_every_engine_and_size(figures):
    table = tower_table(figures)
    for name in ("plain", "eager", "exact"):
        assert f"| {name} ({figures[f'engine_{name}']}) |" in table
    assert "batch 1 | batch 8 | batch 32 | batch 128" in table
    assert f"{figures['exact_over_eager_b32']:.1f}×" in table
    for name in [each for each in figures if each.startswith("ddim") and each.endswith("_over_ddpm50")]:
        steps = name.removeprefix("ddim").partition("_")[0]
        assert f"- DDIM-{steps} against the model's own sampling: {figures[name]:.2f}" in table


def test_the_command_refuses_what_is_no_bundle(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["t2diff-loadtest", "tower", "--bundle", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "bundle" in capsys.readouterr().err


def test_the_default_model_is_the_default_t2diff():
    model = tower_model(None)
    assert model.config == type(model.config)()
    assert not model.training


def test_at_least_one_round():
    with pytest.raises(LoadtestError, match="rounds must be at least 1, got 0"):
        bench_towers(tower_model(None), rounds=0)


def test_the_command_measures_a_bundle_and_writes_json(tmp_path, monkeypatch, capsys):
    store = Store(tmp_path / "bundles")
    bundle = Path(store.url) / build_untrained(store, seed=0)
    file = tmp_path / "figures.json"
    options = ["--bundle", str(bundle), "--rounds", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["t2diff-loadtest", "tower", *options])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    figures = json.loads(file.read_text())
    assert figures["rounds"] == 1
    assert tower_table(figures) in capsys.readouterr().out
