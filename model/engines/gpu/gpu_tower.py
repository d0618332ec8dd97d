"""The GPU engine that was asked for, or the next one that can be had with a line in the log that says why.

Not run on a GPU: none was at hand when this was written.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Literal

import torch

from model.engines.exact import ExactTower
from model.engines.gpu.compiler import CACHE, compiled, find_compiler
from model.engines.gpu.driver import Kernel, device_capability, driver_version
from model.engines.gpu.graph import GraphTower
from model.engines.gpu.graph_noise import NOISE_THREADS, Drawing, draw_by_kernel, draw_by_torch
from model.engines.gpu.kernel_shape import WARPS, kernel_shape
from model.engines.gpu.persistent import FP16_TOLERANCE, PersistentProgram
from model.engines.gpu.program import TowerProgram
from model.engines.interface import TowerEngine
from model.t2diff import T2Diff

logger = logging.getLogger("t2diff.engine")


def build_gpu_tower(
    model: T2Diff, kind: Literal["graph", "persistent"], *, cache: Path | None = CACHE
) -> TowerEngine:
    """persistent -> graph -> exact.   cache: folder of compiled kernels, None to keep none"""
    device = next(model.parameters()).device
    if device.type != "cuda":
        logger.warning("tower_engine %s needs the model on a GPU, it is on %s: exact runs it", kind, device)
        return ExactTower(model)
    with torch.cuda.device(device):
        if kind == "persistent":
            try:
                return persistent_tower(model, cache=cache)
            except (ValueError, OSError) as error:
                logger.warning("tower_engine persistent cannot be had, graph runs the tower: %s", error)
        try:
            return GraphTower("graph", TowerProgram(model, _drawing(device, cache)))
        except (ValueError, RuntimeError) as error:
            logger.warning("tower_engine graph cannot be had, exact runs the tower: %s", error)
    return ExactTower(model)


def persistent_tower(model: T2Diff, *, cache: Path | None = CACHE) -> GraphTower:
    """Raises ValueError or OSError where the kernel cannot be compiled, loaded or given this model."""
    device = next(model.parameters()).device
    capability, compiler = device_capability(device), find_compiler()

    @functools.cache
    def kernel_of(samples: int) -> Kernel:
        shape = kernel_shape(model, capability, samples=samples)
        driver = driver_version()
        cubin = compiled(compiler, "persistent.cu", capability, shape.macros, driver=driver, cache=cache)
        return Kernel(cubin, "t2_reverse", threads=32 * WARPS, shared_bytes=shape.shared_bytes)

    kernel_of(1)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    shape = kernel_shape(model, capability)
    program = PersistentProgram(model, shape, kernel_of, num_processors=processors)
    return GraphTower("persistent", program, tolerance=FP16_TOLERANCE)


def _drawing(device: torch.device, cache: Path | None) -> Drawing:
    """By noise.cu, or by torch where that cannot be compiled."""
    try:
        capability = device_capability(device)
        cubin = compiled(find_compiler(), "noise.cu", capability, {}, driver=driver_version(), cache=cache)
        return draw_by_kernel(Kernel(cubin, "t2_noise", threads=NOISE_THREADS))
    except (ValueError, OSError) as error:
        logger.warning("the noise of tower_engine graph is drawn by torch, which costs more: %s", error)
        return draw_by_torch
