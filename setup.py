"""The native parts of the package; all else stands in pyproject.toml.

One shared library holds the fused user tower once for each instruction set, another the search of
inverted lists and of small catalogues, a third reads sequences and writes answers. They are optional:
without a C++ compiler the package installs all the same, and the service runs the tower in PyTorch, searches
with FAISS, and reads and writes in Python.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FLAGS = [
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-ffp-contract=fast", "-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512_VNNI = [*AVX512, "-mavx512vnni"]


@dataclass(frozen=True)
class Library:
    """interface: the source that is compiled once, and chooses at run time by cpuid   variant: the one that
    is compiled once for each instruction set   variants: by processor, name and flags, best first
    fallback: one without flags
    """

    folder: Path
    interface: str
    variant: str = ""
    variants: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    fallback: str | None = None

    @property
    def sources(self) -> list[str]:
        return [str(self.folder / source) for source in (self.variant, self.interface) if source]


LIBRARIES = {
    "model.engines.native_tower": Library(
        Path("model") / "engines" / "native",
        "tower.cpp",
        "variant.cpp",
        {
            "x86_64": {
                "avx512_bf16": [*AVX512, "-mavx512bf16", "-DT2_KIND=Half"],
                "avx512": AVX512,
                "avx2": AVX2,
            }
        },
        fallback="portable",
    ),
    "index_builder.native_search": Library(
        Path("index_builder") / "native",
        "lists.cpp",
        "lists_variant.cpp",
        {"x86_64": {"avx512_vnni": AVX512_VNNI, "avx2": AVX2}},
    ),
    "service.native_wire": Library(Path("service") / "native", "wire.cpp"),
}


class BuildNative(build_ext):
    """Compiles each library's variants once for each instruction set that the compiler knows, then links."""

    def build_extension(self, extension: Extension) -> None:
        """Raises CompileError when there is no working compiler; `optional` turns that into a warning."""
        library = LIBRARIES[extension.name]
        objects = []
        if library.fallback:
            objects.append(self._compile(library, library.variant, library.fallback, []))
        have = []
        machine = platform.machine().lower().replace("amd64", "x86_64")
        for name, flags in library.variants.get(machine, {}).items():
            try:
                objects.append(self._compile(library, library.variant, name, flags))
                have.append(f"-DT2_HAVE_{name.upper()}")
            except CompileError:
                self.warn(f"the compiler cannot build variant {name} of {extension.name}; left out")
        objects.append(self._compile(library, library.interface, "interface", have))
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(extension.name), libraries=["pthread"], target_lang="c++"
        )

    def _compile(self, library: Library, source: str, name: str, flags: list[str]) -> str:
        folder = Path(self.build_temp) / name
        (compiled,) = self.compiler.compile(
            [str(library.folder / source)],
            output_dir=str(folder),
            extra_postargs=[*FLAGS, f"-DT2_VARIANT={name}", *flags],
        )
        return compiled


setup(
    ext_modules=[
        Extension(
            name,
            sources=library.sources,
            depends=sorted(str(path) for path in library.folder.glob("*.h")),
            language="c++",
            optional=True,
        )
        for name, library in LIBRARIES.items()
    ],
    cmdclass={"build_ext": BuildNative},
)
