"""Every command line runs as its script and as `python -m` of its module, in the same way."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_runs_as_a_module(script: str) -> None:
    module = SCRIPTS[script].removesuffix(":main")
    helped = _run(module, "--help")
    assert helped.returncode == 0, helped.stderr
    assert "usage" in helped.stdout.lower()
    refused = _run(module, "--no-such-option")
    assert refused.returncode == 2
    assert "no-such-option" in refused.stderr
    assert "Traceback" not in refused.stderr


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
