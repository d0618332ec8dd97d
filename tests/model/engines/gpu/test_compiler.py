"""The cache of compiled kernels, and that every architecture compiles where there is a compiler."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from model.engines.gpu import compiler as compiling
from model.engines.gpu.compiler import HEADERS, Compiler, compiled, cubin_name, find_compiler
from model.engines.gpu.gpu_tower import build_gpu_tower
from model.engines.gpu.kernel_shape import kernel_shape
from tests.model.engines.conftest import SMALL, tower_model

CAPABILITIES = (75, 80, 86, 89, 90)


class _Counting(Compiler):
    """Stands where NVIDIA's compiler is not what a test is about."""

    version = "counting 1"

    def __init__(self) -> None:
        self.calls = 0

    def compile(self, source: str, capability: int, macros: Mapping[str, int]) -> bytes:
        self.calls += 1
        return f"{source} {capability} {sorted(macros.items())}".encode()


def test_a_kernel_is_compiled_once(tmp_path: Path) -> None:
    counting = _Counting()
    for _ in range(2):
        cubin = compiled(counting, "noise.cu", 90, {"A": 1}, driver="12090", cache=tmp_path / "new")
        assert cubin == b"noise.cu 90 [('A', 1)]"
    assert counting.calls == 1
    assert compiled(counting, "noise.cu", 90, {"A": 2}, driver="12090", cache=tmp_path / "new") != cubin
    assert counting.calls == 2
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_without_a_cache_nothing_is_kept_and_a_bad_folder_costs_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting = _Counting()
    compiled(counting, "noise.cu", 90, {}, driver="12090", cache=None)
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert compiled(counting, "noise.cu", 90, {}, driver="12090", cache=tmp_path / "file")
    assert counting.calls == 2
    assert "not kept for the next start" in caplog.text


def test_the_name_changes_with_whatever_changes_the_cubin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(**changes: Any) -> str:
        given = {"compiler": "nvrtc 12.9", "source": "noise.cu", "capability": 90, "macros": {"A": 1}}
        return cubin_name(**{**given, "driver": "12090", **changes})

    assert name() == name()
    changes: list[dict[str, Any]] = [
        {},
        {"compiler": "nvrtc 13.0"},
        {"source": "persistent.cu"},
        {"capability": 80},
        {"macros": {"A": 2}},
        {"macros": {"A": 1, "B": 0}},
        {"driver": "13000"},
    ]
    names = [name(**change) for change in changes]
    for file in ("noise.cu", "device.h", "philox.h"):
        folder = tmp_path / file
        folder.mkdir()
        for other in ("noise.cu", "device.h", "philox.h"):
            text = (compiling.FOLDER / other).read_text()
            (folder / other).write_text(text + "// changed" if other == file else text)
        with monkeypatch.context() as patched:
            patched.setattr(compiling, "FOLDER", folder)
            names.append(name())
    assert len(set(names)) == len(names)


def test_an_installed_package_has_the_sources() -> None:
    project = tomllib.loads((compiling.FOLDER.parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["model.engines.gpu"]
    shipped = {path.name for pattern in patterns for path in compiling.FOLDER.glob(pattern)}
    assert shipped >= {"persistent.cu", "noise.cu", *HEADERS}


@pytest.fixture(scope="module")
def nvidia_compiler() -> Compiler:
    """NVRTC or nvcc; skips where there is neither."""
    try:
        return find_compiler()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_kernels_compile_for_every_architecture(nvidia_compiler: Compiler, capability: int) -> None:
    shape = kernel_shape(tower_model(), capability)
    for source, macros, function in (
        ("persistent.cu", shape.macros, b"t2_reverse"),
        ("noise.cu", {}, b"t2_noise"),
    ):
        cubin = nvidia_compiler.compile(source, capability, macros)
        assert cubin[:4] == b"\x7fELF"
        assert function in cubin


@pytest.mark.parametrize("settings", [{"unet_padding": "same"}, {"unet_channels": (10, 7, 23)}], ids=str)
def test_other_shapes_and_bf16_and_two_samples_compile_too(
    nvidia_compiler: Compiler, settings: dict[str, Any]
) -> None:
    shape = kernel_shape(tower_model(**SMALL | settings), 90, samples=2, bf16=True)
    assert nvidia_compiler.compile("persistent.cu", 90, shape.macros)


def test_a_wrong_count_of_shared_memory_does_not_compile(nvidia_compiler: Compiler) -> None:
    macros = {**kernel_shape(tower_model(), 90).macros, "T2_SHARED_BYTES": 1024}
    with pytest.raises(ValueError, match="counts shared memory otherwise"):
        nvidia_compiler.compile("persistent.cu", 90, macros)


@pytest.mark.parametrize("kind", ["graph", "persistent"])
def test_without_a_gpu_the_exact_engine_runs_and_the_log_says_so(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = build_gpu_tower(tower_model(**SMALL), kind)
    assert engine.name == "exact"
    assert f"tower_engine {kind} needs the model on a GPU, it is on cpu: exact runs it" in caplog.text
