"""Run as a program: load a bundle as a service would, ask it its canary, print what happened as JSON.

`python -m index_builder.load_check URL` prints one line. `index_builder.fresh_process` runs it, so that what
a build left in memory cannot help, and a crash ends a process that nobody needs.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from index_builder import ann
from index_builder.bundle import Bundle, load_bundle
from index_builder.canary import replay_canary
from index_builder.candidates import recall_sequences
from model.engines.interface import EagerTower
from model.engines.tower_engine import TowerEngine, build_tower_engine
from model.noise import request_key

_MAX_BATCH = 32


def check_loading(url: str) -> dict[str, Any]:
    """Load, warm up and ask; the figures, among them which canary answers are wrong on which engine."""
    began = time.perf_counter()
    bundle = load_bundle(url)
    loaded = time.perf_counter()
    tower = build_tower_engine(bundle.model)
    _warm_up(bundle, tower)
    wrong = [*_wrong_answers(bundle, EagerTower(bundle.model)), *_wrong_answers(bundle, tower)]
    return {
        "bundle": bundle.bundle_id,
        "items": len(bundle.item_ids),
        "canaries": len(bundle.canary),
        "tower_engine": tower.name,
        "wrong": wrong,
        "load_seconds": round(loaded - began, 3),
        "query_seconds": round(time.perf_counter() - loaded, 3),
    }


def _warm_up(bundle: Bundle, tower: TowerEngine) -> None:
    """Batches of 1, 2, 4 … 32, as a service that starts. Raises what a request would meet."""
    sequences = [case.sequence for case in bundle.canary]
    size = 1
    while sequences and size <= _MAX_BATCH:
        batch = [sequences[n % len(sequences)] for n in range(size)]
        keys = [request_key(0, f"warm-up-{n}") for n in range(size)]
        recall_sequences(bundle.model, bundle.index, batch, keys, top_k=1, tower=tower)
        size *= 2


def _wrong_answers(bundle: Bundle, tower: TowerEngine) -> list[str]:
    wrong = []
    for case in bundle.canary:
        try:
            replay_canary(bundle.model, bundle.index, bundle.item_ids, [case], tower=tower)
        except ValueError as error:
            wrong.append(f"{tower.name}: {error}")
    return wrong


def main() -> None:
    """The program; exit status 1 with a line on standard error when the bundle cannot be used."""
    import torch

    torch.set_num_threads(1)
    ann.set_num_threads(1)
    try:
        print(json.dumps(check_loading(sys.argv[1])))
    except (ValueError, OSError, RuntimeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
