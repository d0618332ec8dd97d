"""The API that is promised: docs/openapi.json is what the service says, and never broke a caller."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.service.api_changes import breaking_changes

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "openapi.json"
pytestmark = pytest.mark.anyio


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads(COMMITTED.read_text())


async def test_the_committed_document_is_the_services_own(start: Any) -> None:
    said = (await (await start()).client.get("/openapi.json")).json()
    if os.environ.get("UPDATE_OPENAPI"):
        COMMITTED.write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    assert json.loads(COMMITTED.read_text()) == said, "the API changed: `make openapi` writes it down"


def test_no_earlier_version_of_this_major_is_broken(document: dict[str, Any]) -> None:
    """Against every committed version; a breaking change needs a new major version."""
    listed = _git("log", "--format=%H", "--", "docs/openapi.json")
    if listed is None:
        pytest.skip("no git history here to compare with")
    for commit in listed.split():
        text = _git("show", f"{commit}:docs/openapi.json")
        earlier = json.loads(text) if text else document
        if earlier["info"]["version"].split(".")[0] == document["info"]["version"].split(".")[0]:
            assert breaking_changes(earlier, document) == [], commit


REQUEST = ("components", "schemas", "RecallRequest")
FIELDS = (*REQUEST, "properties")


@pytest.mark.parametrize(("where", "change", "told"), [
    (("paths",), lambda at: at.pop("/events"), "POST /events is gone"),
    (REQUEST, lambda at: at["required"].append("top_k"), "top_k is required now"),
    (FIELDS, lambda at: at.pop("seed"), "seed is refused now"),
    ((*FIELDS, "top_k"), lambda at: at.update(maximum=10), "maximum"),
    ((*FIELDS, "top_k"), lambda at: at.update(type="string"), "type"),
    (("components", "schemas", "Candidate", "properties"), lambda at: at.pop("score"), "[].score is gone"),
    (("components", "schemas", "RecallAnswer"), lambda at: at["required"].remove("bundle"), "may be missing"),
    (
        ("paths", "/recall", "post", "parameters"),
        lambda at: at.append({"name": "X-New", "in": "header", "required": True}),
        "needs the parameter X-New",
    ),
])  # fmt: skip
def test_what_breaks_a_caller_is_seen(
    document: dict[str, Any], where: tuple[str, ...], change: Any, told: str
) -> None:
    changed = copy.deepcopy(document)
    at: Any = changed
    for step in where:
        at = at[step]
    change(at)
    found = breaking_changes(document, changed)
    assert any(told in line for line in found), found


def test_additions_break_nobody(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    changed["paths"]["/new"] = copy.deepcopy(changed["paths"]["/events"])
    schemas = changed["components"]["schemas"]
    schemas["RecallRequest"]["properties"]["new"] = {"type": "integer"}
    schemas["RecallRequest"]["properties"]["top_k"]["maximum"] *= 2
    schemas["RecallAnswer"]["properties"]["new"] = {"type": "string"}
    assert breaking_changes(document, changed) == []


def _git(*words: str) -> str | None:
    ran = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout if ran.returncode == 0 else None
