"""Stress tests: how they are found and reported, that their judges can fail, and the short flip test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from index_builder.bundle_files import FILES
from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.stress.expected_answers import Expected
from loadtest.stress.flip import damage_figures
from loadtest.stress.outcome import Options, check, passed
from loadtest.stress.run import run_one, stress_tests
from loadtest.stress.swap import growth_share
from service.engine import set_threads
from tests import forked


def test_a_module_with_a_name_is_a_stress_test() -> None:
    found = stress_tests()
    assert {"swap", "flip"} <= set(found)
    for name, module in found.items():
        assert name == module.NAME
        assert callable(module.run)


@pytest.mark.parametrize("value", [0, 1])
def test_a_report_has_figures_checks_hardware_commit_and_passed(tmp_path: Path, value: int) -> None:
    module = ModuleType("made_up")
    module.run = lambda options: {"num": 7, "checks": [check("few", value, 0)]}  # type: ignore[attr-defined]
    run_one("made-up", module, options=Options(), to=tmp_path)
    report = json.loads((tmp_path / "stress-made-up.json").read_text())
    assert report["passed"] is (value == 0)
    assert report["num"] == 7
    assert {"date", "hardware", "commit", "duration_s", "checks"} <= set(report)


def test_a_check_without_a_value_does_not_hold() -> None:
    assert not passed([check("unknown", None, 1)])
    assert not passed([check("unknown", float("nan"), 1)])
    assert passed([check("at most", 1, 1)])


def test_an_unknown_stress_test_is_named() -> None:
    command = [sys.executable, "-m", "loadtest.stress.run", "swpa"]
    ended = forked.run(command, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("stress: no test 'swpa'; there are ")
    assert "flip," in ended.stderr


def candidates(*pairs: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"item_id": item_id, "score": score} for item_id, score in pairs]


ANSWER = {
    "bundle": "b1",
    "user_id": "u",
    "degraded": False,
    "candidates": candidates(("left-1", 2.0), ("left-2", 1.0)),
}


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"candidates": candidates(("left-1", 2.001), ("left-2", 1.0))}, True),
        ({"candidates": candidates(("left-1", 2.0), ("right-2", 1.0))}, False),
        ({"candidates": candidates(("left-1", 2.0), ("left-2", 1.1))}, False),
        ({"candidates": candidates(("left-1", 2.0))}, False),
        ({"bundle": "b2"}, False),
        ({"bundle": "b3"}, False),
        ({"degraded": True, "candidates": candidates(("left-8", 1.0), ("left-9", 0.5))}, True),
        ({"degraded": True, "candidates": candidates(("left-8", 1.0), ("right-9", 0.5))}, False),
    ],
)
def test_an_answer_must_be_wholly_of_the_bundle_that_it_names(change: dict[str, Any], accepted: bool) -> None:
    expected = Expected(
        prefixes={"b1": "left", "b2": "right"},
        scores={("b1", "u"): [2.0, 1.0], ("b2", "u"): [9.0, 8.0]},
    )
    assert expected({**ANSWER, **change}) is accepted


def test_growth_is_that_of_a_straight_line() -> None:
    assert growth_share([100.0, 101.0, 102.0, 103.0, 104.0]) == pytest.approx(0.04)
    assert growth_share([100.0, 104.0, 100.0, 104.0, 100.0]) == pytest.approx(0.0, abs=0.001)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    store = Store(tmp_path / "bundles")
    set_threads(1)  # two on a busy machine took a minute
    return Path(store.bundle_url(generate_bundle(store, num_items=100, dim=8)))


def test_damage_anywhere_in_a_bundle_is_refused_before_anything_is_parsed(bundle: Path) -> None:
    figures = damage_figures(bundle, 350, Options())
    assert passed(figures["checks"]), figures
    assert sum(figures["tried"].values()) == 350
    assert len(figures["tried"]) == 2 * (len(FILES) + 1), "every file, flipped and cut"


def test_without_checksums_damage_reaches_a_parser_or_is_accepted(bundle: Path) -> None:
    """The test above can fail: it sees what it looks for as soon as the checksums are left out."""
    figures = damage_figures(bundle, 70, Options(), verify=False)
    assert figures["accepted"]
    assert figures["parsed"]
