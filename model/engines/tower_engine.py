"""Which engine runs a user tower: the fastest that can, or the one asked for.

eager   the model's own code; any model, any device; the reference
exact   the same arithmetic without what is done twice, in PyTorch; T2Diff, any device
fused   native code for the whole tower; T2Diff on a CPU; bf16 products where the processor has them
fused_fp32   the same in fp32 throughout
graph   exact's operations in one CUDA graph a batch size; T2Diff on a GPU; not run so far
persistent   the reverse process as one kernel in such a graph; T2Diff on a GPU; not run so far

The last two, where they cannot be had, give way to the next that can with a line in the log. `auto` does not
choose them before they have been measured.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, get_args

from model.engines.exact import ExactTower
from model.engines.fused import FusedTower
from model.engines.gpu.gpu_tower import build_gpu_tower
from model.engines.interface import EagerTower, TowerEngine
from model.engines.native_library import FOLDER, NativeLibrary, native_library
from model.engines.native_spec import why_not
from model.engines.plan import with_sampling
from model.native_file import REMEDY
from model.t2diff import T2Diff
from model.two_tower import TwoTower

__all__ = ["EngineKind", "TowerEngine", "build_tower_engine"]

EngineKind = Literal["auto", "eager", "exact", "fused", "fused_fp32", "graph", "persistent"]
logger = logging.getLogger("t2diff.engine")


def build_tower_engine(
    model: TwoTower,
    *,
    kind: EngineKind = "auto",
    num_inference_steps: int | None = None,
    sampler: str | None = None,
    num_threads: int = 1,
    native_folder: Path = FOLDER,
) -> TowerEngine:
    """The engine of that kind for `model`, which must be in evaluation mode, on the model's device.

    num_inference_steps, sampler: in place of the model's own (T2Diff only)
    num_threads: of the fused engine; torch's are set elsewhere   native_folder: where its library lies
    Raises ValueError for an engine that cannot be had, saying why and what to do.
    """
    if kind not in get_args(EngineKind):
        raise ValueError(f"tower_engine must be one of {', '.join(get_args(EngineKind))}, got {kind!r}")
    if not isinstance(model, T2Diff):
        return _for_other_models(model, kind, num_inference_steps, sampler)
    model = with_sampling(model, num_steps=num_inference_steps, sampler=sampler)
    if kind == "auto":
        return _fastest(model, num_threads, native_folder)
    if kind == "eager":
        return EagerTower(model)
    if kind == "exact":
        return ExactTower(model)
    if kind == "graph" or kind == "persistent":
        return build_gpu_tower(model, kind)
    library = _library(native_folder)
    if isinstance(library, str):
        raise ValueError(f"tower_engine {kind} cannot be had: {library}; or use exact")
    return FusedTower(model, library, variant=_variant(library, kind), num_threads=num_threads)


def _for_other_models(
    model: TwoTower, kind: str, num_inference_steps: int | None, sampler: str | None
) -> TowerEngine:
    name = type(model).__name__
    if kind not in ("auto", "eager"):
        raise ValueError(f"tower_engine {kind} runs T2Diff only, this is {name}; use auto or eager")
    for field, value in (("num_inference_steps", num_inference_steps), ("sampler", sampler)):
        if value is not None:
            raise ValueError(f"{field} can be chosen for T2Diff only, this is {name}; leave it out")
    return EagerTower(model)


def _fastest(model: T2Diff, num_threads: int, native_folder: Path) -> TowerEngine:
    if model.item_table.weight.device.type != "cpu":
        return ExactTower(model)
    library = _library(native_folder)
    reason = library if isinstance(library, str) else why_not(model)
    if reason is None and isinstance(library, NativeLibrary):
        return FusedTower(model, library, num_threads=num_threads)
    logger.warning("the user tower runs on the exact engine, several times slower than fused: %s", reason)
    return ExactTower(model)


def _library(folder: Path) -> NativeLibrary | str:
    """The native library, or why there is none."""
    try:
        library = native_library(folder)
    except (OSError, ValueError) as error:
        return str(error)
    return library or f"its library was not built, {REMEDY}"


def _variant(library: NativeLibrary, kind: str) -> str:
    if kind == "fused":
        return library.variants[0]
    return next(name for name in library.variants if not name.endswith("bf16"))
