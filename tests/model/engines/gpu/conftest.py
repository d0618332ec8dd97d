"""The kernels run on a CPU, thread by thread, and what they must give."""

from __future__ import annotations

import copy
import ctypes
import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batch import SequenceBatch
from model.diffusion import reverse
from model.engines.gpu.kernel_arguments import NoiseArguments, ReverseArguments
from model.engines.gpu.kernel_shape import KernelShape
from model.engines.gpu.persistent import PersistentProgram
from model.engines.gpu.request_layout import RequestLayout
from model.engines.plan import reverse_plan
from model.noise import request_noise, route_keys
from model.t2diff import T2Diff

HERE = Path(__file__).parent
Emulate = Callable[..., ctypes.CDLL]
KERNELS = Path(__file__).parents[4] / "model" / "engines" / "gpu"


@pytest.fixture(scope="session")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Emulate:
    """emulate(source, macros): a kernel compiled as plain C++; skips where there is no g++."""
    compiler = shutil.which("g++")
    folder = tmp_path_factory.mktemp("emulated")

    @functools.cache
    def build(source: str, macros: tuple[tuple[str, int], ...] = ()) -> ctypes.CDLL:
        if compiler is None:
            pytest.skip("no g++ here to compile the kernels for the CPU")
        library = folder / f"{Path(source).stem}{abs(hash(macros)):x}.so"
        flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-w", f"-I{KERNELS}", f"-I{HERE}"]
        defines = [f"-D{name}={value}" for name, value in macros]
        subprocess.run(
            [compiler, *flags, *defines, "-o", str(library), str(HERE / source)], check=True, timeout=120
        )
        return ctypes.CDLL(str(library))

    return build


class EmulatedKernel:
    """persistent.cu for one shape, on the CPU."""

    def __init__(self, emulate: Emulate, shape: KernelShape, *, backwards: bool = False) -> None:
        """backwards: later threads first, which shows a barrier that is missing"""
        self.samples = shape.samples
        macros = shape.macros | ({"T2_BACKWARDS": 1} if backwards else {})
        self._library = emulate("emulated_persistent.cpp", tuple(macros.items()))

    def launch(self, num_blocks: int, arguments: ctypes.Structure) -> None:
        """At once."""
        assert isinstance(arguments, ReverseArguments)
        assert num_blocks == -(-arguments.num_samples // self.samples)
        self._library.t2_emulate(ctypes.byref(arguments))


def run_kernel(
    model: T2Diff, shape: KernelShape, kernel: EmulatedKernel, batch: SequenceBatch, keys: list[int]
) -> torch.Tensor:
    """z_0 at the last behaviour by persistent.cu.   -> (B * R, D)"""
    program = PersistentProgram(model, shape, lambda samples: kernel, num_processors=1)
    layout = RequestLayout(len(keys), model.max_length, program.routes)
    flat = torch.zeros(layout.size, dtype=torch.int64)
    layout.write(flat, batch, keys)
    request = layout.parts(flat)
    with torch.inference_mode():
        return program.last_drift(request, model.embed(request.item_index), (shape.samples, kernel))


def run_noise(emulate: Emulate, keys: list[int], steps: list[int], length: int, dim: int) -> torch.Tensor:
    """All steps' normals by noise.cu.   -> (steps, B, N, D)"""
    key = torch.from_numpy(np.asarray(keys, dtype=np.uint64).view(np.int64))
    step = torch.tensor(steps, dtype=torch.int32)
    normals = _aligned(torch.full((len(steps) * len(keys) * length * dim,), torch.nan))
    blocks = length * dim // 4
    arguments = NoiseArguments(
        keys=key.data_ptr(),
        steps=step.data_ptr(),
        normals=normals.data_ptr(),
        num_samples=len(keys),
        num_blocks=blocks,
        num_total=len(steps) * len(keys) * blocks,
    )
    emulate("emulated_noise.cpp").t2_emulate(ctypes.byref(arguments))
    return normals.view(len(steps), len(keys), length, dim)


def reference_drift(model: T2Diff, batch: SequenceBatch, keys: list[int]) -> torch.Tensor:
    """The same by the model's own code in float64.   -> (B * R, D)"""
    plan = reverse_plan(model)
    routes = model.num_routes if plan.draws_start else 1
    exact = copy.deepcopy(model).double()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            sequence = exact.embed(batch.item_index).repeat_interleave(routes, dim=0)
            mask = batch.mask.repeat_interleave(routes, dim=0)
            noise = request_noise(route_keys(keys, routes), sequence.shape[1], sequence.shape[2])
            if not plan.draws_start:
                step = torch.full((len(sequence),), plan.steps[0])
                drift = exact.predict_drift(torch.zeros_like(sequence), sequence, step, mask)
            else:
                drift = reverse(
                    lambda drift, condition, step: exact.predict_drift(drift, condition, step, mask),
                    sequence,
                    lambda step: noise(step).double(),
                    schedule=exact.schedule,
                    steps=plan.steps,
                    sampler=model.config.sampler,
                )
    finally:
        torch.set_default_dtype(torch.float32)
    last = (batch.length - 1).repeat_interleave(routes)
    return drift[torch.arange(len(drift)), last]


def _aligned(values: torch.Tensor) -> torch.Tensor:
    """The same at an address that 16 bytes divide, as on a GPU."""
    assert values.data_ptr() % 16 == 0, "torch allocates at multiples of 64"
    return values
