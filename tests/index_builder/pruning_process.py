"""Not a test: a process that prunes copies of a store, each time killed by SIGKILL at another point.

usage: pruning_process.py STORE OUT
For n = 1, 2, … it copies STORE to OUT/n and forks a child that prunes the copy down to what is served, and
that kills itself just before its n-th file operation. It ends with the first n at which the child got
through, and prints that n.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path

from publishing_process import kill_before

from index_builder.publish import Store
from index_builder.retention import prune


def main(store: Path, out: Path) -> None:
    for number in range(1, 1_000):
        copy = out / str(number)
        shutil.copytree(store, copy)
        child = os.fork()
        if child == 0:
            kill_before(number, under=str(copy))
            prune(Store(copy), keep=1, younger_than=timedelta(0))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            print(number)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"point {number}: the child ended with status {status}"


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
