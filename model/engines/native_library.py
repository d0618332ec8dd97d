"""The shared library of the fused tower: where it lies, whether it fits, and its functions.

`setup.py` builds it beside this file when there is a C++ compiler; without it nothing is lost but speed.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

from model.engines.native_spec import ABI, NativeBatch, NativeSpec
from model.native_file import REMEDY, native_file

FOLDER = Path(__file__).parent
NAME = "native_tower"


class NativeLibrary:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when `path` cannot be loaded, ValueError when it was built from other sources."""
        library = ctypes.CDLL(str(path))
        library.t2_abi.restype = c_int
        if library.t2_abi() != ABI:
            raise ValueError(f"{path} was built from other sources: {REMEDY}")
        library.t2_variants.restype = c_char_p
        library.t2_create.restype = c_void_p
        library.t2_create.argtypes = [c_char_p, POINTER(NativeSpec)]
        library.t2_destroy.restype = None
        library.t2_destroy.argtypes = [c_void_p]
        library.t2_run.argtypes = [c_void_p, POINTER(NativeBatch), c_int, POINTER(c_int64)]
        library.t2_operations.restype = c_double
        library.t2_operations.argtypes = [c_void_p, c_int64]
        library.t2_peak.restype = c_double
        library.t2_peak.argtypes = [c_char_p, c_int64]
        library.t2_normals.argtypes = [c_char_p, c_uint64, c_uint32, c_int64, POINTER(c_float)]
        library.t2_words.argtypes = [c_char_p, c_uint64, c_uint32, c_int64, POINTER(c_uint32)]
        self.functions = library
        self.variants: list[str] = library.t2_variants().decode().split(",")
        """What was built and this processor can run, best first."""

    def peak(self, variant: str, *, rounds: int = 20_000_000) -> float:
        """Floating-point operations a second of this core in a loop of multiply-adds between registers."""
        return float(self.functions.t2_peak(variant.encode(), rounds))


@functools.cache
def native_library(folder: Path = FOLDER) -> NativeLibrary | None:
    """The library in `folder`, or None where none was built. Raises as `NativeLibrary`."""
    path = native_file(folder, NAME)
    return None if path is None else NativeLibrary(path)
