"""The gate that loads the finished bundle in a process of its own, as TFX's InfraValidator does.

A service shares nothing with the process that built a bundle: not its memory, not what it imported or
registered. A bundle that crashes, hangs or answers wrongly there would do so in every replica.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from typing import Any

from index_builder.gate_limits import GateLimits
from index_builder.quality import Check, skip

FRESH_PROCESS_GATES = ("fresh_process_failures", "canary_mismatches")
PROGRAM = "index_builder.load_check"


def check_in_fresh_process(url: str | None, limits: GateLimits) -> list[Check]:
    """Load and query the bundle at `url` in a new process; a crash or a timeout is a refusal."""
    if url is None:
        return [skip(name, "the bundle's place was not given") for name in FRESH_PROCESS_GATES]
    said, failure = _run(url, limits.load_timeout_s)
    loading = Check(
        FRESH_PROCESS_GATES[0],
        1 if failure else 0,
        at_most=0,
        detail=failure or f"loaded in {said['load_seconds']} s, answered in {said['query_seconds']} s",
        remedy="no service could use this bundle: build it again with the installed version (load_timeout_s)",
    )
    if failure:
        return [loading, skip(FRESH_PROCESS_GATES[1], "the bundle could not be loaded")]
    if not said["canaries"]:
        return [loading, Check(FRESH_PROCESS_GATES[1], math.nan, at_most=0, detail="there is no canary")]
    mismatches = Check(
        FRESH_PROCESS_GATES[1],
        len(said["wrong"]),
        at_most=0,
        detail="; ".join(said["wrong"][:1])
        or f"{said['canaries']} answers on eager and {said['tower_engine']}",
        remedy="its parts are not those that recorded its answers: build it again",
    )
    return [loading, mismatches]


def _run(url: str, timeout_s: float) -> tuple[dict[str, Any], str]:
    """-> what the program printed, and what went wrong in words, empty when nothing did"""
    timeout = timeout_s if math.isfinite(timeout_s) else None
    command = [sys.executable, "-m", PROGRAM, str(url)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"it did not load and answer within {timeout_s:g} s"
    if done.returncode < 0:
        return {}, f"the process was ended by {signal.Signals(-done.returncode).name}"
    if done.returncode > 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {}, last[:500]
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {}, f"it printed {done.stdout[-100:]!r}, not its figures"
    return said, ""
