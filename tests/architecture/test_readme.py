"""README and docs/ tell the truth about settings, metrics, routes, commands and each other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from index_builder.gate_limits import GateLimits
from service.app import ADMIN_LABELS, PUBLIC_LABELS
from service.metrics import Metrics
from service.settings import ServiceSettings, environment_variable_of, flag_of
from tests.documents import DOCUMENTS, README, ROOT


@pytest.mark.parametrize("name", ServiceSettings.model_fields)
def test_every_setting_stands_in_the_documents_with_its_default(name: str) -> None:
    field = ServiceSettings.model_fields[name]
    default = {PydanticUndefined: "required", None: "–"}.get(field.default, f"`{field.default}`")
    row = f"| `{flag_of(name)}` | `{environment_variable_of(name)}` | {default} | {field.description} |"
    assert row in DOCUMENTS


def test_every_metric_stands_in_the_documents_and_no_other() -> None:
    exposed = set(re.findall(r"^# HELP (t2diff_\w+) ", Metrics().exposition().decode(), re.MULTILINE))
    told = set(re.findall(r"^\| `(t2diff_\w+)` \|", DOCUMENTS, re.MULTILINE))
    assert told == exposed


@pytest.mark.parametrize("path", [*PUBLIC_LABELS, *ADMIN_LABELS])
def test_every_route_stands_in_the_documents(path: str) -> None:
    assert path in DOCUMENTS


@pytest.mark.parametrize("limit", dataclasses.fields(GateLimits), ids=lambda limit: limit.name)
def test_every_gate_limit_stands_in_the_documents(limit: dataclasses.Field[float]) -> None:
    assert f"`{limit.name}`" in DOCUMENTS


def test_the_readme_shows_both_commands() -> None:
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.parametrize(
    "path", sorted([ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/*.md")]), ids=str
)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text()):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        found = path.parent / target if target else path
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            names = [re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in names, f"{target}#{anchor}"


def test_a_stranger_reads_the_readme_in_two_minutes() -> None:
    """Reference belongs into docs/."""
    assert len(README.splitlines()) <= 260
