"""Arrays in a safetensors file, mapped: what nobody reads costs no memory, and start-up copies nothing.

Whoever maps a file trusts its bytes for as long as it is mapped: verify it before, and never change it
after. Bundles are immutable, so that holds. A mapped file may be unlinked; its blocks stay until the last
array of it is gone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

_TYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U32": np.uint32, "U8": np.uint8}
_MAX_HEADER_BYTES = 1 << 24


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Write arrays of any of the types that `map_tensors` reads, and words beside them."""
    with _readable_by_others(path):
        arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        safetensors.numpy.save_file(arrays, path, metadata)


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a model's tensors, wherever they are."""
    with _readable_by_others(path):
        on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(on_host, path)


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, each a private mapping: writing to one changes no file.

    Raises ValueError for anything but such a file.
    """
    with path.open("rb") as handle:
        start = handle.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES + 1
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError("it is no safetensors file")
        header = json.loads(handle.read(header_bytes))
    size_bytes = path.stat().st_size
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape = np.dtype(_TYPES[entry["dtype"]]), tuple(int(size) for size in entry["shape"])
        begin, end = (8 + header_bytes + int(offset) for offset in entry["data_offsets"])
        if end > size_bytes or end - begin != kind.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"tensor {name!r} does not fit into the file")
        tensors[name] = (
            np.asarray(np.memmap(path, kind, "c", begin, shape)) if end > begin else np.empty(shape, kind)
        )
    return tensors


def map_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file of any type, mapped privately by safetensors itself.

    Raises ValueError when it holds none.
    """
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if not weights:
        raise ValueError("it holds no weights")
    return weights


@contextmanager
def _readable_by_others(path: Path) -> Iterator[None]:
    """Give a new file the permissions that the umask allows: safetensors lets only the owner read it."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)
