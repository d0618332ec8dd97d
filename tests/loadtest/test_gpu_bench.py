"""The GPU benchmark as far as a CPU can run it; the whole of it where there is a GPU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from loadtest import cli
from loadtest.gpu_bench import bench_gpu, checked, gpu_report, ratios, write_gpu_report
from loadtest.gpu_timing import HostClock, medians
from loadtest.gpu_towers import CompiledProgram, float64_errors, full_batch, plain_tower, tower_times
from model.batch import SequenceBatch
from model.engines.exact import ExactTower
from model.engines.gpu.graph_noise import draw_by_torch
from model.engines.gpu.request_layout import RequestLayout
from model.engines.interface import EagerTower, TowerEngine
from model.registry import build_model
from model.t2diff import T2Diff

TINY = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3, "unet_channels": (8, 8, 8)}


@pytest.fixture
def model() -> T2Diff:
    torch.manual_seed(0)
    model = build_model("t2diff", TINY, 50).eval()
    assert isinstance(model, T2Diff)
    return model


def test_things_take_turns_and_the_slower_one_takes_longer() -> None:
    turns: list[str] = []

    def fast() -> None:
        turns.append("fast")

    def slow() -> None:
        turns.append("slow")
        time.sleep(0.01)

    found = medians({"fast": fast, "slow": slow}, HostClock(), rounds=3)
    assert found["slow"] > 10 > found["fast"]
    order = [name for at, name in enumerate(turns) if at == 0 or turns[at - 1] != name]
    assert order == ["fast", "slow"] * 4, "the warm-up, then three rounds"


def test_the_engines_are_held_to_float64(model: T2Diff) -> None:
    class Wrong(ExactTower):
        def user_embeddings(self, batch: SequenceBatch, keys: Any) -> torch.Tensor:
            return 1.1 * super().user_embeddings(batch, keys)

    engines: dict[str, TowerEngine] = {"exact": ExactTower(model), "wrong": Wrong(model)}
    errors = float64_errors(model, engines)
    assert errors["exact"] < 1e-5
    assert errors["wrong"] == pytest.approx(0.1, rel=1e-3)
    figures = checked(errors | {"nan": float("nan")}, {"exact": 1e-3, "wrong": 1e-3, "nan": 1e-3})
    assert figures["wrong"] == "wrong, nan"
    assert checked({"exact": 1e-5}, {"exact": 1e-3})["wrong"] == ""


def test_the_compiled_step_is_the_plain_one(model: T2Diff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda step, dynamic: step)  # its arithmetic, not the compiler's
    program = CompiledProgram(model, draw_by_torch)
    batch, keys = full_batch(model, [1, 4, 6]), [1, 2, 3]
    layout = RequestLayout(3, model.max_length, 1)
    flat = torch.zeros(layout.size, dtype=torch.int64)
    layout.write(flat, batch, keys)
    request = layout.parts(flat)
    with torch.inference_mode():
        user = program.run(request, program.prepare(request), 0).user
        assert torch.allclose(user, EagerTower(model).user_embeddings(batch, keys), atol=1e-4)


def test_times_are_of_a_sample(model: T2Diff) -> None:
    class Halting:
        def milliseconds(self, call: Any, count: int) -> float:
            call()
            return 40.0 * count

    found = tower_times(model, {"plain": plain_tower(model)}, Halting(), size=8, rounds=2)  # type: ignore[arg-type]
    assert found == {"plain": 5.0}


def test_ratios_say_how_many_times_as_fast() -> None:
    figures = {
        "ms_per_sample_eager_b1": 8.0,
        "ms_per_sample_graph_b1": 2.0,
        "ms_per_sample_persistent_b1": 0.1,
        "ms_per_sample_eager_b256": 0.03,
        "ms_per_sample_graph_b256": 0.01,
    }
    found = ratios(figures)
    assert found["graph_over_eager_b1"] == 4
    assert found["graph_over_eager_b256"] == pytest.approx(3)
    assert found["persistent_over_graph_b1"] == pytest.approx(20)
    assert found["ms_per_sample_b1"] == 0.1
    assert found["ms_per_sample_b256"] == 0.01
    assert "persistent_over_graph_b256" not in found
    assert "ms_per_sample_b8" not in found


def test_the_report_holds_the_machine_the_command_and_the_table(tmp_path: Path) -> None:
    figures = {
        "ms_per_sample_eager_b1": 8.0,
        "ms_per_sample_graph_b1": 2.0,
        "graph_over_eager_b1": 4.0,
        "error_graph": 1e-5,
        "gpu": "Some GPU",
        "commit": "abc",
        "date": "2026-11-22T10:00:00+00:00",
    }
    folder = write_gpu_report(figures, "t2diff-loadtest gpu", tmp_path)
    assert folder.name == "gpu-20261122T100000Z"
    assert json.loads((folder / "figures.json").read_text()) == figures
    text = (folder / "report.md").read_text()
    assert text == gpu_report(figures, "t2diff-loadtest gpu")
    assert "# User tower on Some GPU" in text
    assert "`t2diff-loadtest gpu`" in text
    assert "| graph | 2.0000 ms, 4.0× | – | – | – | – | 1e-05 |" in text
    assert "- commit: abc" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["t2diff-loadtest", "gpu"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: torch sees no GPU here")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.timeout(900)
def test_the_whole_benchmark_on_a_gpu() -> None:
    """Not run: no GPU was at hand when this was written."""
    model = build_model("t2diff", {}, 3_706).eval()
    assert isinstance(model, T2Diff)
    figures = bench_gpu(model, rounds=1, say=lambda part: None)
    assert figures["wrong"] == ""
    assert figures["graph_over_eager_b1"] > 0
    assert figures["seconds"] < 600
