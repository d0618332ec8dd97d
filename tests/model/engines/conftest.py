"""Models with weights that matter, ragged batches, and the float64 reference of every engine."""

from __future__ import annotations

import copy
import functools
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import UNKNOWN_TIME, Sequence, SequenceBatch, collate
from model.engines.fused import FusedTower
from model.engines.interface import TowerEngine
from model.engines.native_library import NativeLibrary, native_library
from model.engines.tower_engine import build_tower_engine
from model.noise import request_noise, route_keys
from model.registry import build_model
from model.t2diff import T2Diff

NUM_ITEMS = 300
VARIANTS = ("avx512_bf16", "avx512", "avx2", "portable")
ENGINES = ("eager", "exact", *VARIANTS)
SMALL = {"embedding_dim": 16, "unet_channels": (16, 16, 16), "num_steps": 6, "feed_forward_hidden": 32}
"""Quick where the width of things does not matter."""


@functools.cache
def tower_model(**settings: Any) -> T2Diff:
    """An untrained T2Diff whose every part moves the answer, time lags and biases included."""
    torch.manual_seed(0)
    model = build_model("t2diff", settings, NUM_ITEMS)
    assert isinstance(model, T2Diff)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.seen_gap.fill_(True)
    return model.eval()


def sequences(lengths: list[int], *, known_times: bool = True) -> list[Sequence]:
    """Sequences whose pauses run from seconds to months."""
    rng = np.random.default_rng(5)
    made = []
    for length in lengths:
        pauses = (10 ** rng.uniform(0, 7, length)).astype(np.int64)
        times = 1_500_000_000 + np.cumsum(pauses) if known_times else np.full(length, UNKNOWN_TIME)
        asked = int(times[-1]) + 3_600 if known_times else UNKNOWN_TIME
        made.append(Sequence(rng.integers(1, NUM_ITEMS + 1, length), times, asked))
    return made


def ragged(model: T2Diff, *, known_times: bool = True) -> SequenceBatch:
    """Lengths 1, 2, k, k + 1 and n, and odd ones between."""
    n, k = model.max_length, model.config.session_length
    lengths = [1, 2, 3, k, k + 1, n - 1, n - 3, n]
    return collate(sequences(lengths, known_times=known_times), max_length=n)


def reference(model: T2Diff, batch: SequenceBatch, keys: list[int]) -> torch.Tensor:
    """The model's own code in float64 under the noise of `keys`.   -> (B, R, D)"""
    noise = request_noise(route_keys(keys, model.num_routes), batch.item_index.shape[1], model.embedding_dim)
    torch.set_default_dtype(torch.float64)  # what the model creates by itself, such as step embeddings
    try:
        with torch.inference_mode():
            return copy.deepcopy(model).double().user_embeddings(batch, lambda step: noise(step).double())
    finally:
        torch.set_default_dtype(torch.float32)


def library() -> NativeLibrary:
    """The native library; skips the test where there is no compiler to build it."""
    found = native_library()
    if found is None:
        assert shutil.which("g++") is None, "g++ is here, the library is not: install the package again"
        pytest.skip("no C++ compiler here: the fused tower was not built")
    return found


def make_engine(model: T2Diff, name: str) -> TowerEngine:
    """One of ENGINES; skips the test where this processor cannot run it."""
    if name not in VARIANTS:
        return build_tower_engine(model, kind=name)  # type: ignore[arg-type]
    if name not in library().variants:
        pytest.skip(f"this processor or compiler has no {name}")
    return FusedTower(model, library(), variant=name)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of an embedding from its reference, as a share of the reference's length."""
    return float(((found.double() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
