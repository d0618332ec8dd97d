"""A compiled kernel loaded and launched through libcuda, on torch's context and its current stream.

Not run: no GPU was at hand when this was written; `tests/model/engines/gpu` runs it on one.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, byref, c_char_p, c_int, c_uint, c_void_p, cast, pointer

import torch

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Kernel:
    """One function of a cubin on the device that is torch's current one."""

    def __init__(self, cubin: bytes, name: str, *, threads: int, shared_bytes: int = 0) -> None:
        """threads, shared_bytes: of a block. Raises ValueError where the driver refuses the cubin."""
        torch.cuda.current_stream().synchronize()  # makes torch's context where there was none
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._driver.cuGetErrorString.argtypes = [c_int, ctypes.POINTER(c_char_p)]
        self._module, self._function = c_void_p(), c_void_p()
        self._check(self._driver.cuModuleLoadData(byref(self._module), cubin))
        self._check(self._driver.cuModuleGetFunction(byref(self._function), self._module, name.encode()))
        if shared_bytes > 48 << 10:
            self._check(
                self._driver.cuFuncSetAttribute(
                    self._function, c_int(_MAX_DYNAMIC_SHARED), c_int(shared_bytes)
                )
            )
        self._threads, self._shared_bytes = threads, shared_bytes

    def launch(self, num_blocks: int, arguments: Structure) -> None:
        """Queue it on the current stream; a graph that is being captured there takes it up."""
        parameters = (c_void_p * 1)(cast(pointer(arguments), c_void_p))
        shape = (num_blocks, 1, 1, self._threads, 1, 1, self._shared_bytes)
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        self._check(
            self._driver.cuLaunchKernel(
                self._function, *(c_uint(size) for size in shape), stream, parameters, None
            )
        )

    def _check(self, result: int) -> None:
        if result:
            text = c_char_p()
            self._driver.cuGetErrorString(result, byref(text))
            raise ValueError(f"CUDA driver: {(text.value or b'error').decode()} ({result})")


def driver_version() -> str:
    """Of the driver that is installed."""
    version = c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(byref(version))
    return str(version.value)


def device_capability(device: torch.device) -> int:
    """75 for a GPU of compute capability 7.5."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
