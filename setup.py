"""The native part of the package; all else stands in pyproject.toml.

One shared library holds the fused user tower once for each instruction set. It is optional: without a
C++ compiler the package installs all the same and the service runs the tower in PyTorch.
"""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("model") / "engines" / "native"
FLAGS = [
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-ffp-contract=fast", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
VARIANTS = {
    "x86_64": {
        "avx512_bf16": [*AVX512, "-mavx512bf16", "-DT2_KIND=Half"],
        "avx512": AVX512,
        "avx2": AVX2,
    }
}
"""Beside `portable`, what is compiled for a processor, best first; at run time cpuid chooses."""


class BuildNative(build_ext):
    """Compiles variant.cpp once for each instruction set that the compiler knows, then links."""

    def build_extension(self, extension: Extension) -> None:
        """Raises CompileError when there is no working compiler; `optional` turns that into a warning."""
        objects = [self._compile("variant.cpp", "portable", ["-DT2_VARIANT=portable"])]
        have = []
        for name, flags in VARIANTS.get(platform.machine().lower().replace("amd64", "x86_64"), {}).items():
            try:
                objects.append(self._compile("variant.cpp", name, [f"-DT2_VARIANT={name}", *flags]))
                have.append(f"-DT2_HAVE_{name.upper()}")
            except CompileError:
                self.warn(f"the compiler cannot build variant {name} of the fused tower; left out")
        objects.append(self._compile("tower.cpp", "interface", have))
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(extension.name), libraries=["pthread"], target_lang="c++"
        )

    def _compile(self, source: str, name: str, flags: list[str]) -> str:
        folder = Path(self.build_temp) / name
        (compiled,) = self.compiler.compile(
            [str(NATIVE / source)], output_dir=str(folder), extra_postargs=[*FLAGS, *flags]
        )
        return compiled


setup(
    ext_modules=[
        Extension(
            "model.engines.native_tower",
            sources=[str(NATIVE / "variant.cpp"), str(NATIVE / "tower.cpp")],
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
