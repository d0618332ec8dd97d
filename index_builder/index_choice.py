"""Which kind of index `auto` takes: the fastest measured that reaches the asked overlap at that size.

The tables are rows of `t2diff-index bench`. CPU: measured 2026-11-22 on one core of an AMD EPYC (AVX-512)
that other work shared, FAISS 1.15.1, d = 64, top 100, overlap 0.99:

    t2diff-index bench --items 3706,10000,20000,50000,108000,300000,1000000

| items | flat µs/query | ivf_flat, × flat | ivf_pq_fs, × flat | hnsw, × flat |
|---|---|---|---|---|
| 3,706 | 75 | 0.6, 2.7 | 0.3, 0.3 | 0.2, 0.2 |
| 20,000 | 220 | 0.6, 1.0 | 0.4, 1.0 | |
| 50,000 | 439 | 1.3, 1.6 | 1.1, 2.5 | |
| 108,000 | 998 | 3.2, 5.0 | 3.4, 6.1 | 0.7, 0.7 |
| 1,000,000 | 9,839 | 10.5, 12.4 | 15.7, 29.1 | |

(× flat one query at a time, then 32 together. The small corpora are timed roughly: other work ran too.)
CUDA: not run; the reasoning is that a GPU reads a million fp32 embeddings of d = 64 in a tenth of a
millisecond, misses no neighbour and masks exclusions.

`flat_fp16` is twice as fast as `flat` at overlap 0.9996 and half its memory, but slower than the lists
wherever size matters; it is there for who wants neither lists nor misses.
"""

from __future__ import annotations

from dataclasses import dataclass

EXACT_ABOVE = 0.999
"""An overlap asked above this is taken to mean all of it."""


@dataclass(frozen=True)
class Choice:
    """The kind to take up to a number of items.   max_items: None for any"""

    max_items: int | None
    kind: str


CPU = (Choice(30_000, "flat"), Choice(None, "ivf_pq_fs"))
CUDA = (Choice(20_000_000, "torch"), Choice(None, "ivf_flat"))


def choose_kind(num_items: int, *, device: str = "cpu", target_overlap: float = 0.99) -> str:
    """The kind for a corpus on a device (`cpu`, `cuda` or `cuda:N`) and an asked overlap at 100."""
    table = CUDA if device.startswith("cuda") else CPU
    kind = next(row.kind for row in table if row.max_items is None or num_items <= row.max_items)
    return kind if target_overlap <= EXACT_ABOVE or kind == "torch" else "flat"
