"""Fuzzing: generated requests and hand-made poisons to a running service, made-up bytes to every parser.

Nothing may be answered 5xx, nothing may hang, and no parser may raise what it does not promise. schemathesis
draws its requests from the service's own OpenAPI document, each run with another seed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.errors import LoadtestError
from loadtest.served import Served, started_service
from loadtest.stress.outcome import Options, check
from loadtest.stress.poisons import Effect, poisons, send_all

NAME = "fuzz"
PATIENCE_S = 0.5
"""Of the service, with half-sent requests: they are answered within a second, too."""
HANG_S = 1.0
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
_GENERATED = re.compile(r"(\d+) generated")
_ERRORS = re.compile(r'^t2diff_responses_total\{[^}]*status="5\d\d"[^}]*\} (\S+)$', re.MULTILINE)
_MAX_RUNS = 100
_PARSERS_GRACE_S = 120.0


@dataclass(frozen=True)
class Plan:
    """cases: of schemathesis, at least   examples: a route and run   parser_s: length of the parsers' part"""

    cases: int = 20_000
    examples: int = 500
    poison_rounds: int = 3
    parser_s: float = 3_600.0


SHORT = Plan(cases=200, examples=20, poison_rounds=1, parser_s=5.0)


def run(options: Options) -> dict[str, Any]:
    """20,000 cases, every poison, an hour of the parsers; `--seconds` makes that part shorter."""
    full = SHORT if options.short else Plan()
    parser_s = full.parser_s if options.seconds is None else options.seconds
    plan = Plan(full.cases, full.examples, full.poison_rounds, parser_s)
    figures = fuzz_figures(plan, options)
    return figures | {"short": options.short or plan.parser_s < Plan.parser_s}


def fuzz_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    with tempfile.TemporaryDirectory(prefix="t2diff-fuzz-") as name:
        folder = Path(name)
        store = Store(folder / "bundles")
        store.publish(generate_bundle(store, num_items=300, dim=16))
        patience = ["--header-timeout-s", str(PATIENCE_S), "--receive-timeout-s", str(PATIENCE_S)]
        cpus = sorted(os.sched_getaffinity(0))
        with started_service(NAME, store.url, options=patience, cpus=cpus, folder=folder / "s") as served:
            poisoned = _poison(served, plan, options)
            generated = _generate(served, plan, options, folder)
            errors = _server_errors(served)
        parsed = fuzz_parsers(plan.parser_s, folder, options)
    return {
        "plan": vars(plan),
        "poisons": poisoned,
        "schemathesis": generated,
        "parsers": parsed,
        "num_5xx": errors,
        "checks": [
            check("answers 5xx that the service counted", errors, 0),
            check("poisons answered wrongly", len(poisoned["wrong"]), 0),
            check("slowest answer to a poison (s)", poisoned["slowest_s"], HANG_S),
            check("poisons missing of 200", max(0, 200 - poisoned["num_poisons"]), 0),
            check("schemathesis cases missing", max(0, plan.cases - generated["num_cases"]), 0),
            check("schemathesis runs that found something", generated["num_failed_runs"], 0),
            check("parsers: exceptions that they do not promise", len(parsed["failures"]), 0),
            check("parsers: slowest input (s)", parsed["slowest_s"], HANG_S),
            check("parsers: seconds missing", max(0.0, 0.9 * plan.parser_s - parsed["seconds"]), 0),
        ],
    }


def fuzz_parsers(seconds: float, folder: Path, options: Options) -> dict[str, Any]:
    """What `parser_fuzz` found in a process of its own: atheris does not return, it ends."""
    options.say(f"parsers for {seconds:g} s")
    out = folder / "parsers.json"
    command = [sys.executable, "-m", "loadtest.stress.parser_fuzz", str(seconds), "1", str(out)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + _PARSERS_GRACE_S, check=False
    )
    if ended.returncode != 0 or not out.exists():
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LoadtestError(f"the parsers' process ended with status {ended.returncode}: {last[:300]}")
    found: dict[str, Any] = json.loads(out.read_text())
    options.say(f"parsers ({found['engine']}): {found['num_inputs']} inputs, failures {found['failures']}")
    return found


def _poison(served: Served, plan: Plan, options: Options) -> dict[str, Any]:
    process = psutil.Process(served.process.pid)
    rss, slowest = [process.memory_info().rss], 0.0
    wrong: dict[str, int] = {}
    effects: list[Effect] = []
    for _ in range(plan.poison_rounds):
        # one at a time: what waits for another one's answer is not a hang
        effects = send_all(served.url, poisons(), at_once=1)
        rss.append(process.memory_info().rss)
        slowest = max(slowest, *(effect.seconds for effect in effects))
        wrong |= {effect.poison.name: effect.status for effect in effects if not effect.right}
    options.say(f"{len(effects)} poisons, slowest {slowest:.2f} s, wrong: {wrong or 'none'}")
    return {
        "num_poisons": len(effects),
        "rounds": plan.poison_rounds,
        "slowest_s": slowest,
        "wrong": wrong,
        "rss_mib": [round(value / 2**20, 1) for value in rss],
    }


def _generate(served: Served, plan: Plan, options: Options, folder: Path) -> dict[str, Any]:
    """Runs of schemathesis with one seed after the other until there were enough cases."""
    cases, failed, seed, told = 0, 0, 0, ""
    while cases < plan.cases and seed < _MAX_RUNS:
        seed += 1
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}/openapi.json"]
        command += ["--checks", _CHECKS, "--max-examples", str(plan.examples), "--seed", str(seed)]
        command += ["--no-color", "--no-shrink", "--phases", "examples,coverage,fuzzing"]
        command += ["--header", "X-Deadline-Ms: 20000", "--request-timeout", "10"]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        counted = _GENERATED.search(ended.stdout)
        if counted is None:
            last = (ended.stderr.strip() or ended.stdout.strip())[-300:]
            raise LoadtestError(f"schemathesis did not run: {last}")
        cases += int(counted[1])
        if ended.returncode != 0:
            failed += 1
            told = told or ended.stdout[-4000:]
        options.say(f"schemathesis: {cases} cases, {failed} runs found something")
    return {"num_cases": cases, "num_runs": seed, "num_failed_runs": failed, "first_failure": told}


def _server_errors(served: Served) -> int:
    """What was answered 5xx since the start, by the service's own count."""
    with urlopen(f"{served.admin_url}/metrics", timeout=10) as response:
        return int(sum(float(value) for value in _ERRORS.findall(response.read().decode())))
