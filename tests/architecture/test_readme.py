"""README tells the truth about settings, metrics, routes and commands."""

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

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("name", ServiceSettings.model_fields)
def test_every_setting_stands_in_the_readme_with_its_default(name: str) -> None:
    field = ServiceSettings.model_fields[name]
    default = {PydanticUndefined: "required", None: "–"}.get(field.default, f"`{field.default}`")
    row = f"| `{flag_of(name)}` | `{environment_variable_of(name)}` | {default} | {field.description} |"
    assert row in README


def test_every_metric_stands_in_the_readme_and_no_other() -> None:
    exposed = set(re.findall(r"^# HELP (t2diff_\w+) ", Metrics().exposition().decode(), re.MULTILINE))
    told = set(re.findall(r"^\| `(t2diff_\w+)` \|", README, re.MULTILINE))
    assert told == exposed


@pytest.mark.parametrize("path", [*PUBLIC_LABELS, *ADMIN_LABELS])
def test_every_route_stands_in_the_readme(path: str) -> None:
    assert path in README


@pytest.mark.parametrize("limit", dataclasses.fields(GateLimits), ids=lambda limit: limit.name)
def test_every_gate_limit_stands_in_the_readme(limit: dataclasses.Field[float]) -> None:
    assert f"`{limit.name}`" in README


def test_the_readme_shows_both_commands() -> None:
    assert "make demo" in README
    assert "make test" in README
