"""The locks agree with each other, and the bill of materials tells what is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LINE = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: --hash=sha256:([0-9a-f]{64}))?$")


def read_lock(name: str) -> dict[str, tuple[str, str | None]]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    matches = [_LINE.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if match is None]
    return {match[1]: (match[2], match[3]) for match in matches if match}


def test_the_hashed_lock_has_every_version_of_the_other_but_torch_with_its_hash() -> None:
    plain, hashed = read_lock("requirements.lock"), read_lock("requirements.hashed.lock")
    assert hashed.keys() == plain.keys() - {"torch"}
    assert {name: version for name, (version, _) in hashed.items()} == {
        name: version for name, (version, _) in plain.items() if name != "torch"
    }
    digests = [digest for _, digest in hashed.values()]
    assert None not in digests
    assert len(set(digests)) == len(digests)


def test_the_bill_of_materials_names_what_is_installed() -> None:
    command = [sys.executable, str(ROOT / "deploy" / "sbom.py")]
    bill = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {component["name"]: component for component in bill["components"]}
    for name in ("torch", "fastapi", "uvicorn", "pydantic", "redis", "httptools"):
        component = components[name]
        assert component["purl"].startswith(f"pkg:pypi/{name}@{component['version'].split('+')[0]}")
    known = {component["bom-ref"] for component in bill["components"]} | {"t2diff-recall"}
    assert len(known) == len(components) + 1
    for entry in bill["dependencies"]:
        assert {entry["ref"], *entry["dependsOn"]} <= known
    locked = read_lock("requirements.hashed.lock")
    version, digest = locked["fastapi"]
    assert components["fastapi"]["version"] == version, "the environment is the locked one"
    assert components["fastapi"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
