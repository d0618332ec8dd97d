"""Run as a program: feed made-up bytes to everything that parses bytes of others, for some seconds.

`python -m loadtest.stress.parser_fuzz SECONDS SEED OUT` writes what came of it to the file OUT, as JSON.
Atheris chooses the bytes by which code they reach where it is installed (the extra `fuzz`); else they are cut
and pasted at random from the hand-made poisons. A parser may refuse its input by its own error class: all
else that it raises is a failure, and so is an answer that takes over a second.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

SLOW_S = 1.0
_MAX_BYTES = 65_536
_MAX_FAILURES = 20
Target = Callable[[bytes], object]


@dataclass
class Outcome:
    """What is told of a run.   failures: by where they were raised   slow: inputs of over a second"""

    engine: str
    seconds: float = 0.0
    num_inputs: int = 0
    num_refused: int = 0
    num_slow: int = 0
    slowest_s: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)


def targets() -> dict[str, tuple[Target, tuple[type[Exception], ...]]]:
    """Every parser, and the errors by which it may refuse."""
    from index_builder.bundle_files import BundleError, parse_manifest
    from index_builder.canary import decode_canary
    from index_builder.delta import DeltaError, decode_delta
    from service import schemas
    from service.body import deadline_of, parse
    from service.errors import ServiceError, render
    from service.middleware import RequestContext
    from service.packed_sequence import NotThisUserError, unpack, unpack_in_python

    def body(schema: Any) -> Target:
        def check(data: bytes) -> None:
            try:
                parse(schema, data)
            except ServiceError as error:
                if not 400 <= error.status < 500 or len(render(error.problem("r"))) > 10_000:
                    raise AssertionError(f"{error.status}, or too long a problem") from error
                raise

        return check

    def sealed_delta(data: bytes) -> object:
        head = json.dumps({"format_version": 1, "sha256": hashlib.sha256(data).hexdigest()})
        return decode_delta(head.encode() + b"\n" + data)

    def manifest(data: bytes) -> object:
        return parse_manifest(f"20261122T000000Z-{hashlib.sha256(data).hexdigest()[:8]}", data)

    def deadline(data: bytes) -> object:
        return deadline_of(RequestContext("r", time.monotonic(), {b"x-deadline-ms": data}), 1000)

    def stored(data: bytes) -> object:
        read, plainly = unpack(data, "u"), unpack_in_python(data, "u")
        if read != plainly:
            raise AssertionError("the library and Python read it differently")
        return read

    refused = (ServiceError,)
    wrong_json = (ValueError, KeyError, TypeError, IndexError, RuntimeError, ArithmeticError, AttributeError)
    return {
        "recall": (body(schemas.RECALL_REQUEST), refused),
        "batch": (body(schemas.RECALL_BATCH_REQUEST), refused),
        "event": (body(schemas.EVENT), refused),
        "events": (body(schemas.EVENTS), refused),
        "add items": (body(schemas.ADD_ITEMS), refused),
        "item ids": (body(schemas.ITEM_IDS), refused),
        "rollback": (body(schemas.ROLLBACK), refused),
        "deadline": (deadline, refused),
        "stored sequence": (
            lambda data: unpack(data, "u") == unpack_in_python(data, "u"),
            (NotThisUserError,),
        ),
        "delta": (decode_delta, (DeltaError,)),
        "sealed delta": (sealed_delta, (DeltaError,)),
        "manifest": (manifest, (BundleError,)),
        "canary": (lambda data: decode_canary(data, {"i1": 1}), wrong_json),  # what `load_bundle` turns over
    }


def seeds() -> list[bytes]:
    """What the random engine cuts from, and the first inputs of the other."""
    from loadtest.stress.poison_bodies import bodies

    sequence = b"u\n1700000000\ni1\n1700000001\ni2\n"
    delta = b'{"revision": 1, "updated": 5, "items": [{"item_id": "n1", "similar_item_ids": {"i1": 1.0}, '
    delta += b'"features": ["a=b"], "added": 5}], "deleted": {"i7": 5}}'
    manifest = b'{"format_version": 3, "files": {"index.faiss": {"size_bytes": 1, "sha256": "00"}}}'
    canary = b'[{"user_id": "u", "seed": 0, "top_k": 1, "item_ids": ["i1"], "timestamp": [1], '
    canary += b'"request_time": 2, "candidates": ["i1"], "scores": [1.0]}]'
    good = b'{"user_id": "u", "top_k": 5, "sequence": [{"item_id": "i1", "timestamp": 5}], "seed": 1}'
    own = [sequence, delta, manifest, canary, good, b'{"requests": [%s]}' % good, b"1000"]
    return own + [body.body for body in bodies() if len(body.body) < 2_000]


class Trial:
    """Runs inputs and keeps count. The first byte of an input chooses the parser."""

    def __init__(
        self, outcome: Outcome, parsers: dict[str, tuple[Target, tuple[type[Exception], ...]]]
    ) -> None:
        self.outcome = outcome
        self._parsers = list(parsers.items())

    def __call__(self, data: bytes) -> None:
        name, (parser, allowed) = self._parsers[(data[0] if data else 0) % len(self._parsers)]
        began = time.perf_counter()
        try:
            parser(data[1:])
        except allowed:
            self.outcome.num_refused += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            key = f"{name}: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            if len(self.outcome.failures) < _MAX_FAILURES:
                self.outcome.failures.setdefault(key, repr(data[1:300]))
        took = time.perf_counter() - began
        self.outcome.num_inputs += 1
        self.outcome.slowest_s = max(self.outcome.slowest_s, took)
        self.outcome.num_slow += took > SLOW_S


def made_up(seed: int) -> Iterator[bytes]:
    """Inputs without end: pieces of the seeds, put together and spoilt."""
    choice, known = random.Random(seed), seeds()
    words = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\n", b"0", b"-1", b"1e999", b"NaN", b"null"]
    words += [b"\x00", b"\xff", b'"\\ud800"', b"9" * 30, b"true", b"[" * 500, b'"user_id"', b'"item_id"']
    while True:
        data = bytearray(choice.choice(known))
        for _ in range(choice.randrange(6)):
            at = choice.randrange(len(data) + 1)
            match choice.randrange(5):
                case 0:
                    data[at:at] = choice.choice(words)
                case 1:
                    del data[at : at + choice.randrange(1, 20)]
                case 2:
                    other = choice.choice(known)
                    cut = choice.randrange(len(other) + 1)
                    data[at:] = other[cut:]
                case 3 if at < len(data):
                    data[at] ^= 1 << choice.randrange(8)
                case _:
                    data[at:at] = data[: choice.randrange(50)] * choice.randrange(3)
        yield bytes([choice.randrange(256)]) + bytes(data[:_MAX_BYTES])


def run_random(trial: Trial, seconds: float, seed: int) -> None:
    """Made-up inputs for some seconds."""
    give_up = time.monotonic() + seconds
    for data in made_up(seed):
        trial(data)
        if time.monotonic() > give_up:
            return


def _atheris() -> ModuleType | None:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


def main(seconds: float, seed: int, out: Path) -> None:
    """Fuzz and write the outcome, now and then and at the end: atheris ends the process by itself."""
    atheris = _atheris()
    instrumented: AbstractContextManager[object] = nullcontext()
    if atheris is not None:
        instrumented = atheris.instrument_imports(include=["service", "index_builder"])
    with instrumented:
        trial = Trial(Outcome("random" if atheris is None else "atheris"), targets())
    began = told = time.monotonic()

    def write() -> None:
        trial.outcome.seconds = time.monotonic() - began
        out.write_text(json.dumps(asdict(trial.outcome)))

    def one_input(data: bytes) -> None:
        nonlocal told
        trial(data)
        if time.monotonic() - told > 1:
            told = time.monotonic()
            write()

    for data in seeds():
        for parser in range(len(targets())):
            trial(bytes([parser]) + data)
    write()
    if atheris is None:
        run_random(trial, seconds, seed)
        write()
        return
    corpus = out.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(seeds()):
        (corpus / str(number)).write_bytes(bytes([number % len(targets())]) + data)
    options = [f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", f"-max_len={_MAX_BYTES}"]
    atheris.Setup([sys.argv[0], *options, "-timeout=30", str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
