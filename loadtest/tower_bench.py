"""How fast the user tower is on each engine, all taking turns in one process on one core.

Times are processor time of this thread, so that a neighbour on the core is not counted, and medians over
the rounds. `plain` is the model's own code with noise from torch's generator, the cheapest way to run it
plainly; the ratios are to it. `eager` is the same code under the service's counter-based noise.
The share of the peak counts the multiply-adds that the fused tower's U-Net really does, over its whole
time, against a loop of nothing but multiply-adds between registers in the same library.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from loadtest.errors import LoadtestError
from loadtest.target import describe_hardware, git_commit
from model.batch import Sequence, SequenceBatch, collate
from model.engines.fused import FusedTower
from model.engines.interface import TowerEngine
from model.engines.native_library import native_library
from model.engines.tower_engine import build_tower_engine
from model.noise import fresh_noise
from model.t2diff import T2Diff

BATCH_SIZES = (1, 8, 32, 128)
FEWER_STEPS = (5, 10, 25)
"""Of DDIM, measured beside the model's own sampling."""
PEAK_ROUNDS = 4_000_000
_SECONDS_OF_A_TURN = 0.02  # short calls are repeated for so long
Figures = dict[str, Any]


@dataclass
class _Runner:
    """One engine's way to embed a batch, and its milliseconds a sample by batch size."""

    name: str
    embed: Callable[[SequenceBatch, list[int]], Any]
    times: dict[int, list[float]] = field(default_factory=dict)

    def take_turn(self, batch: SequenceBatch) -> None:
        size = len(batch.length)
        keys = list(range(size))
        began = time.thread_time()
        count = 0
        while count == 0 or time.thread_time() - began < _SECONDS_OF_A_TURN:
            self.embed(batch, keys)
            count += 1
        self.times.setdefault(size, []).append(1_000 * (time.thread_time() - began) / count / size)

    def median(self, size: int) -> float:
        return statistics.median(self.times[size])


def bench_towers(
    model: T2Diff,
    *,
    rounds: int = 12,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    on_round: Callable[[int], None] = lambda done: None,
) -> Figures:
    """Flat figures, as `--json` writes them.

    model: in evaluation mode, on the CPU   rounds: turns of each engine at each batch size, at least 1
    """
    if rounds < 1:
        raise LoadtestError(f"rounds must be at least 1, got {rounds}")
    torch.set_num_threads(1)
    runners = runners_of(model)
    batches = {size: _batch(model, size) for size in batch_sizes}
    peaks: dict[str, list[float]] = {}
    for runner in runners.values():  # warm up
        runner.embed(batches[batch_sizes[0]], [0] * batch_sizes[0])
    for done in range(rounds):
        for batch in batches.values():
            for runner in runners.values():
                runner.take_turn(batch)
        _measure_peaks(runners, peaks)
        on_round(done + 1)
    return _figures(model, runners, peaks, batch_sizes, rounds)


def runners_of(model: T2Diff) -> dict[str, _Runner]:
    """Every engine to measure, by its name in the figures; DDIM only with fewer steps than the model."""

    def plain(batch: SequenceBatch, keys: list[int]) -> torch.Tensor:
        shape = (len(keys) * model.num_routes, batch.item_index.shape[1], model.noise_dim)
        with torch.no_grad():
            return model.user_embeddings(batch, fresh_noise(shape, torch.device("cpu")))

    engines: dict[str, TowerEngine] = {
        "eager": build_tower_engine(model, kind="eager"),
        "exact": build_tower_engine(model, kind="exact"),
    }
    if native_library() is not None:
        engines["fused_fp32"] = build_tower_engine(model, kind="fused_fp32")
        engines["fused"] = build_tower_engine(model, kind="fused")
        for steps in FEWER_STEPS:
            if model.config.num_steps > steps:
                engines[f"ddim{steps}"] = build_tower_engine(
                    model, kind="fused", num_inference_steps=steps, sampler="ddim"
                )
    runners = {"plain": _Runner("plain", plain)}
    runners |= {name: _Runner(engine.name, engine.user_embeddings) for name, engine in engines.items()}
    return runners


def _batch(model: T2Diff, size: int) -> SequenceBatch:
    """Sequences of full length, whose times are known."""
    choice = np.random.default_rng(0)
    length = model.max_length
    return collate(
        [
            Sequence(
                choice.integers(1, model.num_items + 1, length),
                1_700_000_000 + np.cumsum(choice.integers(0, 86_400, length)),
                1_800_000_000,
            )
            for _ in range(size)
        ],
        max_length=length,
    )


def _measure_peaks(runners: dict[str, _Runner], peaks: dict[str, list[float]]) -> None:
    library = native_library()
    if library is None:
        return
    for name in ("fused", "fused_fp32"):
        variant = runners[name].name.removeprefix("fused-")
        peaks.setdefault(name, []).append(library.peak(variant, rounds=PEAK_ROUNDS))


def _figures(
    model: T2Diff,
    runners: dict[str, _Runner],
    peaks: dict[str, list[float]],
    batch_sizes: tuple[int, ...],
    rounds: int,
) -> Figures:
    first, last = batch_sizes[0], batch_sizes[-1]
    figures: Figures = {
        f"ms_per_sample_{name}_b{size}": runner.median(size)
        for name, runner in runners.items()
        for size in batch_sizes
    }
    for name, runner in runners.items():
        for size in batch_sizes:
            if name != "plain":
                figures[f"{name}_over_eager_b{size}"] = runners["plain"].median(size) / runner.median(size)
    if "fused" in runners:
        fused = runners["fused"]
        figures |= {f"ms_per_sample_b{size}": fused.median(size) for size in batch_sizes}
        figures[f"b{first}_over_b{last}"] = fused.median(first) / fused.median(last)
        figures |= {
            f"ddim{steps}_over_ddpm50": fused.median(last) / runners[f"ddim{steps}"].median(last)
            for steps in FEWER_STEPS
            if f"ddim{steps}" in runners
        }
        figures |= _peak_shares(model, runners, peaks, last)
    hardware = describe_hardware(device="cpu")
    return {
        **{name: round(value, 5) for name, value in figures.items()},
        **{f"engine_{name}": runner.name for name, runner in runners.items()},
        **hardware,
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "torch": torch.__version__,
    }


def _peak_shares(
    model: T2Diff, runners: dict[str, _Runner], peaks: dict[str, list[float]], size: int
) -> dict[str, float]:
    shares: dict[str, float] = {}
    for name in ("fused", "fused_fp32"):
        engine = build_tower_engine(model, kind=name)
        assert isinstance(engine, FusedTower)
        number = "bf16" if engine.name.endswith("bf16") else "fp32"
        speed = engine.operations(model.max_length) * model.num_routes / (runners[name].median(size) / 1_000)
        peak = statistics.median(peaks[name])
        shares |= {f"peak_share_{number}": speed / peak, f"peak_gflops_{number}": peak / 1e9}
    return shares
