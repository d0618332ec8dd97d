"""What building a bundle costs in memory and time, by the number of items.

Every build is a fresh process that reads a checkpoint from disk. Its memory is of two sorts. Anonymous
memory must be there; pages of mapped files (the checkpoint's weights, the finished bundle when it is read
back) are a cache that the system drops when it needs room. The former is looked at twenty times a second;
the peak of their sum is what the system itself recorded (`VmHWM`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from index_builder import bundle_files
from index_builder.ann import KINDS
from index_builder.index_choice import choose_kind
from index_builder.publish import Store

ALLOWANCE_BYTES = 4 * 2**30
_GENERATE = """
import sys; from pathlib import Path
from index_builder.generated_bundle import generate_checkpoint
from model.checkpoint import save_checkpoint
save_checkpoint(Path(sys.argv[1]), generate_checkpoint(num_items=int(sys.argv[2]), dim=int(sys.argv[3])))
"""
_LOOK_EVERY_S = 0.05
_ANONYMOUS = re.compile(r"RssAnon:\s+(\d+) kB")


@dataclass(frozen=True)
class Stage:
    """Seconds of one stage by the clock and of the processor, and its peak of anonymous memory."""

    name: str
    seconds: float
    cpu_seconds: float
    anonymous_bytes: int


@dataclass(frozen=True)
class BuildCost:
    """index_bytes: the index file, and the item embeddings where it searches them   bundle_bytes: all of it
    peak_bytes: anonymous and file-backed   anonymous_bytes: that part's own peak
    """

    num_items: int
    kind: str
    overlap: float
    index_bytes: int
    bundle_bytes: int
    peak_bytes: int
    anonymous_bytes: int
    stages: list[Stage] = field(default_factory=list)

    @property
    def over_index_bytes(self) -> int:
        """What the build took beyond what it built, at the peak."""
        return self.peak_bytes - self.index_bytes

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def cpu_seconds(self) -> float:
        return sum(stage.cpu_seconds for stage in self.stages)


def measure_builds(
    sizes: Sequence[int],
    kinds: Sequence[str],
    folder: Path,
    *,
    dim: int = 64,
    report: Callable[[str], None] = lambda text: None,
) -> list[BuildCost]:
    """Build every kind (`auto` as well) of every size below `folder`, which is left empty."""
    costs = []
    for num_items in sizes:
        checkpoint = folder / f"checkpoint-{num_items}"
        report(f"generating {num_items:,} items")
        _run([sys.executable, "-c", _GENERATE, str(checkpoint), str(num_items), str(dim)])
        for kind in dict.fromkeys(choose_kind(num_items) if kind == "auto" else kind for kind in kinds):
            report(f"building {kind} of {num_items:,} items")
            store = folder / f"{kind}-{num_items}"
            try:
                costs.append(measure_build(checkpoint, store, kind))
            finally:
                shutil.rmtree(store, ignore_errors=True)
        shutil.rmtree(checkpoint)
    return costs


def measure_build(checkpoint: Path, store: Path, kind: str) -> BuildCost:
    """Build one bundle in a fresh process and watch it."""
    command = [sys.executable, "-m", "index_builder.build_probe", str(checkpoint), str(store), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun: list[_Beginning] = []
    anonymous: dict[str, int] = {}
    errors: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        threading.Thread(target=_read_stages, args=(process.stdout, begun)),
        threading.Thread(target=lambda text: errors.append(text.read()), args=(process.stderr,)),
    ]
    for reader in readers:
        reader.start()
    while process.poll() is None:
        name = begun[-1].name if begun else ""
        anonymous[name] = max(anonymous.get(name, 0), _anonymous_bytes(process.pid))
        time.sleep(_LOOK_EVERY_S)
    for reader in readers:
        reader.join()
    if process.returncode:
        raise ValueError(f"a build of {kind} failed: {errors[0].strip()[-500:]}")
    (summary,) = Store(store).summaries()
    manifest = summary.manifest
    files = {name: file["size_bytes"] for name, file in manifest["files"].items()}
    num_items, dim = manifest["counts"]["items"], manifest["counts"]["embedding_dim"]
    searched = 4 * num_items * dim if not KINDS[kind].holds_items or KINDS[kind].rescored else 0
    return BuildCost(
        num_items=num_items,
        kind=kind,
        overlap=manifest["index"]["ann_overlap_at_100"],
        index_bytes=files[bundle_files.INDEX] + searched,
        bundle_bytes=sum(files.values()),
        peak_bytes=begun[-1].peak_bytes,
        anonymous_bytes=max(anonymous.values()),
        stages=[
            Stage(
                stage.name,
                after.seconds - stage.seconds,
                after.cpu_seconds - stage.cpu_seconds,
                anonymous.get(stage.name, 0),
            )
            for stage, after in pairwise(begun)
        ],
    )


@dataclass(frozen=True)
class _Beginning:
    """A line of `build_probe`."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def _read_stages(lines: Iterable[str], begun: list[_Beginning]) -> None:
    for line in lines:
        name, seconds, cpu_seconds, peak = line.rstrip("\n").split("\t")
        begun.append(_Beginning(name, float(seconds), float(cpu_seconds), int(peak)))


def _anonymous_bytes(process_id: int) -> int:
    """0 for a process that has ended."""
    try:
        found = _ANONYMOUS.search(Path(f"/proc/{process_id}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"generating failed: {done.stderr.strip()[-500:]}")
