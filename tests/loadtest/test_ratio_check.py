"""Which change of which figure makes `t2diff-loadtest compare` fail."""

from __future__ import annotations

import json
import sys

import pytest

from loadtest import cli
from loadtest.ratio_check import got_worse

KEPT = {"knee_fused_over_eager": 4.0, "p99_over_p50_at_70": 2.0, "knee_rps_fused": 900.0, "commit": "a"}


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """`compare(new, *options)` against KEPT: (exit code, stdout, stderr)."""

    def run(new, *options):
        old_file, new_file = tmp_path / "old.json", tmp_path / "new.json"
        old_file.write_text(json.dumps(KEPT))
        new_file.write_text(json.dumps(new))
        arguments = ["compare", str(old_file), str(new_file), *options]
        monkeypatch.setattr(sys, "argv", ["t2diff-loadtest", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"knee_fused_over_eager": 3.61}, 0),  # within a tenth
        ({"knee_fused_over_eager": 3.59}, 1),
        ({"knee_fused_over_eager": 40.0}, 0),
        ({"p99_over_p50_at_70": 2.19}, 0),
        ({"p99_over_p50_at_70": 2.21}, 1),
        ({"p99_over_p50_at_70": 0.2}, 0),
        ({"p99_over_p50_at_70": None}, 1),  # measured before, not now
        ({"knee_rps_fused": 9.0}, 0),  # another machine, perhaps: shown, not judged
    ],
)
def test_a_ratio_that_got_worse_by_more_than_the_margin_fails(compare, change, code):
    found, out, _ = compare(KEPT | change, "--margin", "0.1")
    assert found == code
    assert ("**worse**" in out or "**gone**" in out) == bool(code)
    assert "knee_rps_fused" in out


def test_a_ratio_that_is_not_there_any_more_fails(compare):
    code, out, _ = compare({"p99_over_p50_at_70": 2.0})
    assert code == 1
    assert "**gone**" in out


def test_the_margin_is_the_callers(compare):
    assert compare(KEPT | {"knee_fused_over_eager": 3.0}, "--margin", "0.3")[0] == 0
    assert compare(KEPT | {"knee_fused_over_eager": 3.9}, "--margin", "0.01")[0] == 1


def test_figures_without_a_common_ratio_are_refused_in_one_line(compare):
    code, out, err = compare({"commit": "b"})
    assert code == 2
    assert "share no ratio" in err
    assert out == ""


@pytest.mark.parametrize(
    ("name", "new", "worse"),
    [
        ("fused_over_eager_b1", 8.0, True),
        ("b1_over_b128", 12.0, True),
        ("b1_over_b128", 8.0, False),
        ("fused_rss_less_1_gib_over_index", 12.0, True),
        ("fused_rss_less_1_gib_over_index", 8.0, False),
    ],
)
def test_each_ratio_is_judged_in_its_own_direction(name, new, worse):
    assert got_worse(name, 10.0, new, 0.1) is worse


@pytest.mark.parametrize(("new", "worse"), [(-700.0, False), (0.5, True)])
def test_memory_within_a_gibibyte_is_as_good_as_any_other_such(new, worse):
    assert got_worse("fused_rss_less_1_gib_over_index", -800.0, new, 0.1) is worse
