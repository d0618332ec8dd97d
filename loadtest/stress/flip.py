"""Damage anywhere in a bundle: single bits flipped and files cut, thousands of times, each refused unparsed.

What refuses is what the service loads bundles with. That no parser saw a damaged byte is not taken from the
message: every function that Python calls during a load is noted, and only those that compare names, sizes
and checksums may be among them. (The manifest is JSON of ours: it may be parsed once its own checksum held.)
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from index_builder.bundle import load_bundle
from index_builder.bundle_files import FILES, MANIFEST
from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.stress.outcome import Options, check

NAME = "flip"
VERIFYING = frozenset({"bundle_files.py", "storage.py", "local_storage.py"})
"""Files of index_builder that look at bytes without reading a meaning into them, the manifest's apart."""

_NUM_ITEMS = 500
_FLIPS, _FLIPS_SHORT = 10_000, 300


def run(options: Options) -> dict[str, Any]:
    """Figures: how many were tried by file and kind, accepted, and that reached a parser."""
    with tempfile.TemporaryDirectory(prefix="t2diff-flip-") as folder:
        store = Store(Path(folder) / "bundles")
        bundle = Path(store.bundle_url(generate_bundle(store, num_items=_NUM_ITEMS, dim=16)))
        return damage_figures(bundle, _FLIPS_SHORT if options.short else _FLIPS, options)


def damage_figures(bundle: Path, num_trials: int, options: Options, *, verify: bool = True) -> dict[str, Any]:
    """Damage the files of a bundle in turn, `num_trials` times, and put each back.

    verify: False loads without checksums, to show that this test can fail
    """
    choice = random.Random(0)
    names = (MANIFEST, *FILES)
    whole = {name: (bundle / name).read_bytes() for name in names}
    refusal, called = _load(bundle, verify=True)
    if refusal is not None or not _parsers(MANIFEST, called):
        raise AssertionError(f"the undamaged bundle must be loaded, and be seen to be: {refusal}")
    tried: Counter[str] = Counter()
    accepted: list[str] = []
    parsed: list[str] = []
    for number in range(num_trials):
        name = names[number % len(names)]
        kind, damaged = _damage(whole[name], choice)
        (bundle / name).write_bytes(damaged)
        refusal, called = _load(bundle, verify=verify)
        (bundle / name).write_bytes(whole[name])
        tried[f"{kind} {name}"] += 1
        if refusal is None:
            accepted.append(f"{kind} {name}")
        elif reached := _parsers(name, called):
            parsed.append(f"{kind} {name}: {reached}, then {refusal}")
        if (number + 1) % 1000 == 0:
            options.say(f"{number + 1} of {num_trials}, {len(accepted)} accepted, {len(parsed)} parsed")
    load_bundle(bundle)
    return {
        "num_trials": num_trials,
        "tried": dict(sorted(tried.items())),
        "accepted": accepted[:20],
        "parsed": parsed[:20],
        "checks": [
            check("damaged bundles accepted", len(accepted), 0),
            check("damaged bundles that reached a parser", len(parsed), 0),
        ],
    }


def _damage(data: bytes, choice: random.Random) -> tuple[str, bytes]:
    """One bit of it turned over, or its end cut off."""
    if choice.random() < 0.8:
        position = choice.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        return "flip", bytes(flipped)
    return "cut", data[: choice.randrange(len(data))]


def _load(bundle: Path, *, verify: bool) -> tuple[Exception | None, set[CodeType]]:
    """Why the bundle was refused, None when it was not, and every function that was called."""
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    try:
        load_bundle(bundle, verify=verify)
    except Exception as error:
        return error, called
    finally:
        sys.setprofile(None)
    return None, called


def _parsers(damaged: str, called: set[CodeType]) -> list[str]:
    """What was called that reads more than names, sizes and checksums; empty when nothing was parsed."""
    found = []
    for code in called:
        file = Path(code.co_filename)
        ours = {"index_builder", "model"} & set(file.parts[-3:])
        if (ours and file.name not in VERIFYING and code is not load_bundle.__code__) or (
            damaged == MANIFEST and code is json.loads.__code__
        ):
            found.append(f"{file.name}:{code.co_name}")
    return sorted(found)
