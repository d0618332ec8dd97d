"""A log is read in less memory than its text takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NUM_FILES = 4
ROWS_PER_FILE = 200_000

MEASURE = """
import sys
from pathlib import Path
from model.data.reader import read_interactions

def memory_bytes(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0]) * 1024

log = Path(sys.argv[1])
read_interactions([log / "part-0.csv"])  # the parser's buffers are the same for a log of any size
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = memory_bytes("VmRSS")
log = read_interactions([log])
print(len(log), log.num_users, memory_bytes("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_peak_memory_stays_well_under_the_size_of_the_log(tmp_path: Path):
    """800,000 rows with long string ids: at the peak 40 bytes a row against 227 of text."""
    (tmp_path / "log").mkdir()
    user = [f"user-{number:05d}-{'abcdef0123456789' * 6}" for number in range(3000)]
    item = [f"item-{number:05d}-{'abcdef0123456789' * 6}" for number in range(2003)]
    for file in range(NUM_FILES):
        start = 1_700_000_000 + file * ROWS_PER_FILE
        with (tmp_path / "log" / f"part-{file}.csv").open("w") as stream:
            stream.write("user_id,item_id,timestamp\n")
            stream.writelines(
                f"{user[row * 7 % 3000]},{item[row * row % 2003]},{start + row}\n"
                for row in range(ROWS_PER_FILE)
            )
    size = sum(path.stat().st_size for path in (tmp_path / "log").iterdir())
    assert size > 170_000_000

    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    rows, users, growth = map(int, run.stdout.split())
    assert (rows, users) == (NUM_FILES * ROWS_PER_FILE, 3000)
    assert growth < 0.5 * size
