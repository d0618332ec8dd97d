"""Experiments: settings that fit together; routing that is even, stable and independent of other salts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.experiments import Experiment, Router
from service.settings import SettingsError, environment_variable_of, load_settings

USERS = [f"user-{number}" for number in range(30_000)]
FILE = """
bundles = "x"
[experiment]
name = "e"
[[experiment.arms]]
name = "control"
share = 90
[[experiment.arms]]
name = "challenger"
bundle = "20261122T031500Z-1a2b3c4d"
share = 10
[[experiment.arms]]
name = "shadow"
share = 50
shadow = true
"""


def experiment(*shares: float, **settings: Any) -> Experiment:
    arms = [{"name": f"arm{number}", "share": share} for number, share in enumerate(shares)]
    return Experiment(**{"name": "e", "arms": arms, **settings})


def chi_square(observed: dict[Any, int], expected: dict[Any, float]) -> float:
    return sum((observed.get(key, 0) - count) ** 2 / count for key, count in expected.items())


def count(values: list[Any]) -> dict[Any, int]:
    return {value: values.count(value) for value in set(values)}


@pytest.mark.parametrize("salt", ["a", "b", "2026-11"])
def test_users_are_divided_as_the_shares_say(salt: str) -> None:
    """Chi-square of 3 degrees of freedom: 16.3 is passed by chance once in a thousand."""
    router = Router(experiment(50, 30, 15, 5, salt=salt))
    observed = count([router.arm_of(user) for user in USERS])
    expected = {f"arm{n}": len(USERS) * share / 100 for n, share in enumerate((50, 30, 15, 5))}
    assert chi_square(observed, expected) < 16.3


def test_consecutive_numbers_are_divided_as_evenly_as_anything_else() -> None:
    """Ten thousands, each of 1 degree of freedom: 29.6 together is passed by chance once in a thousand."""
    router = Router(experiment(50, 50))
    thousands = [[router.arm_of(str(start + n)) for n in range(1_000)] for start in range(0, 10_000, 1_000)]
    assert sum(chi_square(count(arms), {"arm0": 500, "arm1": 500}) for arms in thousands) < 29.6


def test_two_salts_divide_the_users_independently() -> None:
    """The joint counts are the product of the marginal ones: chi-square as above."""
    shares = {"arm0": 0.5, "arm1": 0.3, "arm2": 0.2}
    first, second = (Router(experiment(50, 30, 20, salt=salt)) for salt in ("first", "second"))
    observed = count([(first.arm_of(user), second.arm_of(user)) for user in USERS])
    expected = {(a, b): len(USERS) * shares[a] * shares[b] for a in shares for b in shares}
    assert chi_square(observed, expected) < 26.1  # 8 degrees of freedom: the shares are given, not fitted


def test_a_user_stays_with_an_arm_across_processes_and_versions() -> None:
    router = Router(experiment(40, 30, 30, salt="pinned"))
    users = ["u1", "u2", "u3", "42", "Zoë", "a b"]
    assert [router.arm_of(user) for user in users] == PINNED


PINNED = ["arm2", "arm0", "arm1", "arm0", "arm1", "arm2"]


def test_the_salt_is_the_name_when_there_is_none() -> None:
    named, salted = Router(experiment(50, 50, name="n")), Router(experiment(50, 50, salt="n"))
    assert [named.arm_of(user) for user in USERS[:100]] == [salted.arm_of(user) for user in USERS[:100]]


def test_a_share_that_grows_takes_users_over_and_moves_nobody_else() -> None:
    before, after = Router(experiment(90, 10)), Router(experiment(70, 30))
    moved = {(before.arm_of(user), after.arm_of(user)) for user in USERS}
    assert moved == {("arm0", "arm0"), ("arm0", "arm1"), ("arm1", "arm1")}


def test_an_arm_without_a_share_and_a_shadow_answer_nobody() -> None:
    arms = [
        {"name": "none", "share": 0},
        {"name": "all", "share": 100},
        {"name": "never", "share": 0},
        {"name": "shadow", "share": 100, "shadow": True},
    ]
    router = Router(Experiment(name="e", arms=arms))  # type: ignore[arg-type]
    assert {router.arm_of(user) for user in USERS} == {"all"}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("config", "bundles", "experiment"):
        monkeypatch.delenv(environment_variable_of(name), raising=False)

    def load(text: str) -> Any:
        (tmp_path / "settings.toml").write_text(text)
        return load_settings(["--config", str(tmp_path / "settings.toml")]).experiment

    return load


def test_the_settings_file_holds_an_experiment(load: Any) -> None:
    loaded = load(FILE)
    assert [arm.name for arm in loaded.answering] == ["control", "challenger"]
    assert loaded.bundles == {"current": "control", "20261122T031500Z-1a2b3c4d": "challenger"}
    assert [arm.shadow for arm in loaded.arms] == [False, False, True]
    assert load('bundles = "x"') is None


def test_an_experiment_can_come_from_the_environment_or_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"name": "e", "arms": [{"name": "a", "share": 60}, {"name": "b", "share": 40}]}'
    by_flag = load_settings(["--bundles", "x", "--experiment", text]).experiment
    monkeypatch.setenv("T2DIFF_EXPERIMENT", text)
    assert load_settings(["--bundles", "x"]).experiment == by_flag
    assert by_flag is not None
    assert [arm.share for arm in by_flag.arms] == [60, 40]


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ("share = 90", "share = 80", r"sum to 90, they must sum to 100"),
        ("share = 90", "share = 101", r"experiment\.arms\.0\.share .*got '101'.*100"),
        ("share = 90", "share = nan", r"experiment\.arms\.0\.share .*'nan'.*finite"),
        ('"challenger"', '"control"', r"two are named 'control'"),
        ('"challenger"', '"a b"', r"experiment\.arms\.1\.name .*got 'a b'"),
        ("share = 10", "weight = 10", r"experiment\.arms\.1\.weight .*no such setting"),
        ('name = "e"', "", r"experiment\.name .*is required"),
        (
            '"20261122T031500Z-1a2b3c4d"',
            '"../elsewhere"',
            r"arms\.1\.bundle .*'\.\./elsewhere'.*t2diff-index",
        ),
        ("share = 90", "share = 90\nshadow = true", r"the first one, 'control', is the control and must"),
    ],
)
def test_a_wrong_experiment_is_named_in_one_line(load: Any, change: str, to: str, message: str) -> None:
    assert change in FILE
    with pytest.raises(SettingsError, match=message) as error:
        load(FILE.replace(change, to))
    assert str(error.value).startswith("experiment")
    assert "(--experiment, T2DIFF_EXPERIMENT): " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [0, 1, 21])
def test_an_experiment_takes_two_to_twenty_arms(number: int) -> None:
    with pytest.raises(ValueError, match=f"there are {number}; an experiment takes 2 to 20"):
        experiment(*[100.0 / max(number, 1)] * number)
