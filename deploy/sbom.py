"""`make sbom`: what the environment is made of, as a CycloneDX 1.6 document on standard output.

Every installed distribution with its version, licence, package URL and dependencies, as its own metadata has
them; the SHA-256 of the file it came from where `requirements.hashed.lock` knows it. Needs no network.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OWN = "t2diff-recall"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(.*)$", re.DOTALL)
_HASHED = re.compile(r"^(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})$", re.MULTILINE)


def document() -> dict[str, Any]:
    """The whole document; the same for the same environment."""
    found = {_plain(each.metadata["Name"]): each for each in distributions() if each.metadata["Name"]}
    hashes = {(_plain(name), version): digest for name, version, digest in _HASHED.findall(_lock())}
    own = found.pop(OWN, None)
    components = [_component(name, each, hashes) for name, each in sorted(found.items())]
    known = {component["name"]: component["bom-ref"] for component in components}
    root = {"type": "application", "name": OWN, "bom-ref": OWN, "version": own.version if own else "0"}
    graph = [{"ref": known[name], "dependsOn": _needs(each, known)} for name, each in sorted(found.items())]
    if own is not None:
        graph.insert(0, {"ref": OWN, "dependsOn": _needs(own, known)})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": graph,
    }


def _component(name: str, distribution: Distribution, hashes: dict[tuple[str, str], str]) -> dict[str, Any]:
    version = distribution.version
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    component: dict[str, Any] = {"type": "library", "name": name, "version": version}
    component |= {"bom-ref": purl, "purl": purl}
    told = distribution.metadata["License-Expression"] or distribution.metadata["License"] or ""
    if told.strip():
        component["licenses"] = [{"license": {"name": told.strip().splitlines()[0][:200]}}]
    if (name, version) in hashes:
        component["hashes"] = [{"alg": "SHA-256", "content": hashes[name, version]}]
    return component


def _needs(distribution: Distribution, known: dict[str, str]) -> list[str]:
    """What is installed of what it may need, extras included."""
    names = {_plain(match[1]) for line in distribution.requires or [] if (match := _REQUIREMENT.match(line))}
    return sorted(known[name] for name in names if name in known)


def _lock() -> str:
    path = ROOT / "requirements.hashed.lock"
    return path.read_text() if path.exists() else ""


def _plain(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
