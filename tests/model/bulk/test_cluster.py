"""What the cluster's user meets when there is none, or when a node is not like the others."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from model.bulk.block_fields import from_table, to_table
from model.bulk.cluster import check_answers
from model.bulk.reading import PieceReader
from model.bulk.surroundings import surroundings_of, surroundings_problem

ROOT = Path(__file__).parents[3]
WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from model.cli import main; main()"


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,a,5\n")
    command = [sys.executable, "-c", WITHOUT_RAY, "inspect", "--data", tmp_path / "log.csv", "--ray", "local"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 2
    assert "pip install 't2diff-recall[ray]'" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_node_with_other_libraries_or_another_processor_is_told() -> None:
    here = surroundings_of(PieceReader)
    assert surroundings_problem(here, dict(here)) == ""
    assert {"torch", "CPU instructions", "source of model"} <= here.keys()
    for name in here:
        problem = surroundings_problem(here, {**here, name: "other"})
        assert f"{name} other" in problem
        assert here[name] in problem


def test_fields_survive_their_table() -> None:
    fields = {
        "numbers": np.arange(5, dtype=np.int32),
        "floats": np.array([0.1, np.nan, -0.0], dtype=np.float32),
        "none": np.empty(0, dtype=np.int64),
        "names": ["é", "", "b"],
        "count": 1 << 40,
        "word": "ü",
        "raw": b"\x00\xff",
    }
    (back,) = from_table(to_table(fields))
    assert back.keys() == fields.keys()
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            assert (back[name].dtype, back[name].tobytes()) == (value.dtype, value.tobytes())
        else:
            assert back[name] == value


@pytest.mark.parametrize("address", ["somewhere", "ray://host:10001", "host:0", ":6379", "host:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="local, auto or the HOST:PORT"):
        check_answers(address)


def test_what_is_not_ray_is_told_at_once() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(ValueError, match="is not Ray"):
            check_answers(f"127.0.0.1:{server.server_port}")
