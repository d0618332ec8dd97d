"""Every command line runs as its script and as `python -m` of its module, in the same way."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_runs_as_a_module(script: str) -> None:
    module = SCRIPTS[script].removesuffix(":main")
    command = [sys.executable, "-m", module, "--help"]
    helped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert helped.returncode == 0, helped.stderr
    assert "usage" in helped.stdout.lower()
    refused = forked.run([sys.executable, "-m", module, "--no-such-option"], timeout=120)
    assert refused.returncode == 2
    assert "no-such-option" in refused.stderr
    assert "Traceback" not in refused.stderr
