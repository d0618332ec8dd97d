"""One build in a process of its own: run as a program by `index_builder.build_benchmark`.

Arguments: checkpoint folder, store, kind of index. Prints a line as each stage begins and one at the end:
its name, seconds since the start, processor seconds, and the peak of resident bytes so far.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import torch

from index_builder import ann
from index_builder.build import build_bundle
from index_builder.publish import Store
from model.checkpoint import map_checkpoint

START = "reading the checkpoint"
END = "done"


def main(checkpoint: str, store: str, kind: str) -> None:
    """Build with one thread."""
    torch.set_num_threads(1)
    ann.set_num_threads(1)
    begun = time.perf_counter()

    def report(stage: str) -> None:
        kilobytes = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        peak = int(kilobytes[1]) * 1024 if kilobytes else 0
        print(f"{stage}\t{time.perf_counter() - begun}\t{time.process_time()}\t{peak}", flush=True)

    report(START)
    build_bundle(map_checkpoint(Path(checkpoint)), Store(store), index_kind=kind, report=report)
    report(END)


if __name__ == "__main__":
    main(*sys.argv[1:])
