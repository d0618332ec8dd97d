"""The structures that the kernels take by value, as in persistent.cu and noise.cu."""

from __future__ import annotations

from ctypes import Structure, c_int, c_longlong, c_void_p


class ReverseArguments(Structure):
    """`Arguments` of persistent.cu; pointers are addresses on the device."""

    _fields_ = (
        *((name, c_void_p) for name in ("sequence", "length", "keys", "weights", "tables", "predict_bias")),
        *((name, c_void_p) for name in ("coefficients", "noise_steps", "drift")),
        *((name, c_int) for name in ("num_samples", "width", "routes", "num_steps")),
    )


class NoiseArguments(Structure):
    """`NoiseArguments` of noise.cu."""

    _fields_ = (
        *((name, c_void_p) for name in ("keys", "steps", "normals")),
        *((name, c_int) for name in ("num_samples", "num_blocks")),
        ("num_total", c_longlong),
    )
