"""Not a test: a process that publishes into copies of a store, each time killed by SIGKILL at another point.

usage: publishing_process.py BUNDLE STORE OUT
For n = 1, 2, … it copies STORE to OUT/n and forks a child that adds BUNDLE's files under a new id and
publishes them, as a build does, and that kills itself just before its n-th file operation in the store.
It ends with the first n at which the child got through, and prints that n.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from index_builder.bundle_files import FILES, MANIFEST, seal
from index_builder.publish import Store


def main(bundle: Path, store: Path, out: Path) -> None:
    for number in range(1, 1_000):
        copy = out / str(number)
        shutil.copytree(store, copy)
        child = os.fork()
        if child == 0:
            kill_before(number, under=str(copy))
            publish(bundle, copy)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            print(number)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"point {number}: the child ended with status {status}"


def kill_before(number: int, *, under: str) -> None:
    """SIGKILL this process before its `number`-th operation on a path below `under` or on an open file."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple) -> None:
        inside = any(isinstance(name, str | Path) and str(name).startswith(under) for name in arguments)
        if (event.split(".")[0] in ("open", "os", "shutil") and inside) or event in ("os.remove", "os.rmdir"):
            count()

    def profile(frame: object, event: str, function: object) -> None:
        if event == "c_call" and getattr(function, "__name__", "") in ("write", "flush", "fsync", "__exit__"):
            count()

    sys.addaudithook(audit)
    sys.setprofile(profile)


def publish(bundle: Path, url: Path) -> None:
    """What a build does once the files' contents are known."""
    store = Store(url)
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    for field in ("format_version", "created", "files"):
        del manifest[field]
    with store.staging() as staging:
        folder = staging / "bundle"
        folder.mkdir()
        for name in FILES:
            (folder / name).write_bytes((bundle / name).read_bytes())
        bundle_id = seal(folder, {**manifest, "build": "another"})
        store.add(folder.rename(staging / bundle_id))
    store.publish(bundle_id)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
