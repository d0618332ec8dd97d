"""Forked processes are what started ones would be: own process id, exit codes, signals, files, arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import forked

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def test_arguments_environment_folder_output_and_exit_code_are_its_own(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "print(__name__, sys.argv[1:], os.environ['WHO'], os.getcwd(), os.getpid())\n"
        "sys.exit('no such luck')\n"
    )
    ended = forked.run([sys.executable, program, "a", 1], env={"WHO": "me"}, cwd=tmp_path, timeout=60)
    *told, pid = ended.stdout.rsplit(maxsplit=1)
    assert told == [f"__main__ ['a', '1'] me {tmp_path}"]
    assert int(pid) != os.getpid()
    assert (ended.returncode, ended.stderr) == (1, "no such luck\n")
    assert forked.run([sys.executable, "-c", "import sys; sys.exit(7)"], timeout=60).returncode == 7
    broken = forked.run([sys.executable, "-c", "1 / 0"], timeout=60)
    assert (broken.returncode, broken.stderr.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")


def test_it_ends_by_the_signal_that_it_gets() -> None:
    process = forked.start([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not psutil.pid_exists(process.pid)


def test_one_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", SLEEP], timeout=0.5)


def test_the_program_that_stands_for_python_ends_as_its_process_does() -> None:
    code = "import sys; print(sys.executable, sys.stdin.read()); sys.exit(3)"
    ended = subprocess.run([forked.python(), "-c", code], input="words", capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, f"{forked.python()} words\n")
    for how in (signal.SIGTERM, signal.SIGKILL):
        code = "import os; print(os.getpid(), flush=True); import time; time.sleep(600)"
        process = subprocess.Popen([forked.python(), "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        inner = int(process.stdout.readline())
        process.send_signal(how)
        assert process.wait(30) == -how
        give_up = time.monotonic() + 30
        while psutil.pid_exists(inner):
            assert time.monotonic() < give_up, f"it outlived {how!r} of who asked for it"
            time.sleep(0.01)
