"""The kernels compiled for one GPU at start, by NVRTC or nvcc, and kept for the next start.

NVRTC comes with torch's CUDA wheels; nvcc is taken where NVRTC is not found. What is kept lies in a folder
under a name that changes with the sources, the shape, the GPU's architecture and the versions of compiler
and driver. Compiling needs no GPU, loading does.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path

FOLDER = Path(__file__).parent
HEADERS = ("device.h", "philox.h")
CACHE = Path.home() / ".cache" / "t2diff-recall" / "kernels"
_FLAGS = ("--std=c++17",)
logger = logging.getLogger("t2diff.engine")


class Compiler(ABC):
    """Makes a cubin of one of the sources here.   version: of the compiler, as part of a cubin's name"""

    version: str

    @abstractmethod
    def compile(self, source: str, capability: int, macros: Mapping[str, int]) -> bytes:
        """Raises ValueError with the compiler's own words."""


def compiled(
    compiler: Compiler,
    source: str,
    capability: int,
    macros: Mapping[str, int],
    *,
    driver: str,
    cache: Path | None = CACHE,
) -> bytes:
    """The cubin of `source` for a GPU of `capability`, from `cache` where it was made before.

    driver: its version   cache: None keeps nothing; a folder that cannot be written costs a log line
    Raises ValueError where the source does not compile.
    """
    if cache is None:
        return compiler.compile(source, capability, macros)
    path = cache / cubin_name(compiler.version, source, capability, macros, driver=driver)
    try:
        return path.read_bytes()
    except OSError:
        pass
    cubin = compiler.compile(source, capability, macros)
    try:
        _write(path, cubin)
    except OSError as error:
        logger.warning("the compiled GPU kernel is not kept for the next start: %s", error)
    return cubin


def cubin_name(compiler: str, source: str, capability: int, macros: Mapping[str, int], *, driver: str) -> str:
    """A file name that differs wherever the cubin could."""
    parts = [compiler, driver, *_FLAGS, *(f"{name}={value}" for name, value in sorted(macros.items()))]
    parts += [(FOLDER / name).read_text() for name in (source, *HEADERS)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{Path(source).stem}-sm_{capability}-{digest[:24]}.cubin"


def find_compiler() -> Compiler:
    """NVRTC, or nvcc. Raises ValueError where there is neither."""
    tried = []
    for name in nvrtc_names():
        try:
            return Nvrtc(name)
        except OSError as error:
            tried.append(f"{name}: {error}")
    if nvcc := shutil.which("nvcc"):
        return Nvcc(nvcc)
    raise ValueError(
        f"no NVRTC and no nvcc to compile the GPU kernels ({'; '.join(tried)}): install torch with CUDA"
    )


def nvrtc_names() -> list[str]:
    """Where NVRTC may lie: on the loader's path, and in NVIDIA's wheels beside torch."""
    names = ["libnvrtc.so.13", "libnvrtc.so.12"]
    for folder in map(Path, sys.path):
        for pattern in ("nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"):
            names += [str(path) for path in sorted((folder / pattern).glob("libnvrtc.so.1*"))]
    return [*names, "libnvrtc.so"]


class Nvrtc(Compiler):
    """NVIDIA's compiler as a library. Raises OSError when `library` is not there."""

    def __init__(self, library: str) -> None:
        functions = ctypes.CDLL(library)
        functions.nvrtcGetErrorString.restype = c_char_p
        create = functions.nvrtcCreateProgram
        create.argtypes = [POINTER(c_void_p), c_char_p, c_char_p, c_int, POINTER(c_char_p), POINTER(c_char_p)]
        functions.nvrtcCompileProgram.argtypes = [c_void_p, c_int, POINTER(c_char_p)]
        for name in ("ProgramLog", "CUBIN"):
            getattr(functions, f"nvrtcGet{name}Size").argtypes = [c_void_p, POINTER(c_size_t)]
            getattr(functions, f"nvrtcGet{name}").argtypes = [c_void_p, c_char_p]
        functions.nvrtcDestroyProgram.argtypes = [POINTER(c_void_p)]
        self._functions = functions
        major, minor = c_int(), c_int()
        self._check(functions.nvrtcVersion(byref(major), byref(minor)))
        self.version = f"nvrtc {major.value}.{minor.value}"

    def compile(self, source: str, capability: int, macros: Mapping[str, int]) -> bytes:
        """As Compiler.compile; `log` then holds what the compiler said."""
        program = c_void_p()
        headers = [(FOLDER / name).read_bytes() for name in HEADERS]
        names = [name.encode() for name in HEADERS]
        strings = c_char_p * len(HEADERS)
        self._check(
            self._functions.nvrtcCreateProgram(
                byref(program),
                (FOLDER / source).read_bytes(),
                source.encode(),
                len(HEADERS),
                strings(*headers),
                strings(*names),
            )
        )
        try:
            options = [*_FLAGS, f"--gpu-architecture=sm_{capability}", "--ptxas-options=-v"]
            options += [f"--define-macro={name}={value}" for name, value in macros.items()]
            given = (c_char_p * len(options))(*(option.encode() for option in options))
            result = self._functions.nvrtcCompileProgram(program, len(options), given)
            self.log = self._read("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if result:
                raise ValueError(f"{source} does not compile for sm_{capability}: {self.log}")
            return self._read("CUBIN", program)
        finally:
            self._functions.nvrtcDestroyProgram(byref(program))

    def _read(self, what: str, program: c_void_p) -> bytes:
        size = c_size_t()
        self._check(getattr(self._functions, f"nvrtcGet{what}Size")(program, byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._functions, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, result: int) -> None:
        if result:
            raise ValueError(f"NVRTC: {self._functions.nvrtcGetErrorString(result).decode()}")


class Nvcc(Compiler):
    """NVIDIA's compiler as a command."""

    def __init__(self, command: str) -> None:
        self._command = command
        told = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=False)
        self.version = " ".join(told.stdout.split()[-3:]) or "nvcc"

    def compile(self, source: str, capability: int, macros: Mapping[str, int]) -> bytes:
        """As Compiler.compile."""
        defines = [f"-D{name}={value}" for name, value in macros.items()]
        with tempfile.TemporaryDirectory() as folder:
            to = Path(folder) / "kernel.cubin"
            command = [self._command, "-cubin", f"-arch=sm_{capability}", *_FLAGS, *defines]
            done = subprocess.run(
                [*command, "-o", str(to), str(FOLDER / source)],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            if done.returncode:
                raise ValueError(f"{source} does not compile for sm_{capability}: {done.stderr}")
            return to.read_bytes()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
