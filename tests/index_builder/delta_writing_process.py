"""Not a test: a process that changes a delta.

usage: delta_writing_process.py STORE add WRITER COUNT | kill NUMBER | hold
add: COUNT items and as many deletions, each a change of its own   kill: add one item, but SIGKILL itself
before its NUMBER-th file operation in the store   hold: take the store's lock, say so and keep it
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from index_builder.delta import DeltaFile, NewItem
from index_builder.storage import open_storage


def main(store: str, action: str, *arguments: str) -> None:
    file = DeltaFile(store)
    if action == "add":
        writer, count = arguments
        for number in range(int(count)):
            file.add([NewItem(f"n-{writer}-{number}", {"i1": 1.0})])
            file.delete([f"d-{writer}-{number}"])
    elif action == "kill":
        kill_before(int(arguments[0]), under=str(Path(store)))
        file.add([NewItem("killed", {"i1": 1.0})])
        os._exit(0)
    else:
        with open_storage(store).lock():
            print("held", flush=True)
            time.sleep(600)


def kill_before(number: int, *, under: str) -> None:
    """SIGKILL this process before its `number`-th operation on a path below `under` or on an open file."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple) -> None:
        if event.split(".")[0] in ("open", "os", "fcntl") and any(
            isinstance(argument, str | Path) and str(argument).startswith(under) for argument in arguments
        ):
            count()

    def profile(frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__name__", "") in ("write", "flush", "fsync", "flock"):
            count()

    sys.addaudithook(audit)
    sys.setprofile(profile)


if __name__ == "__main__":
    main(*sys.argv[1:])
