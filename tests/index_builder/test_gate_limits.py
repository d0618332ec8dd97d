"""Limits are read from file and command line, in that order, and wrong ones are named."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from index_builder.gate_limits import GateLimits, read_limits


def test_the_command_line_beats_the_file_beats_the_default(tmp_path):
    file = tmp_path / "nightly.toml"
    file.write_text("other = 1\n[gates]\nmax_recall_drop = 0.2\nmin_questions = 5\n")
    limits = read_limits(["min_questions=7", "max_age_hours=inf"], file=file)
    assert (limits.max_recall_drop, limits.min_questions, limits.max_age_hours) == (0.2, 7, float("inf"))
    assert limits.max_mrr_drop == GateLimits().max_mrr_drop
    assert read_limits() == GateLimits()


def test_every_limit_is_justified_in_the_docstring():
    told = inspect.getdoc(GateLimits) or ""
    assert [field.name for field in dataclasses.fields(GateLimits) if field.name not in told] == []


@pytest.mark.parametrize(
    ("settings", "text", "said"),
    [
        (
            ["max_recal_drop=1"],
            "",
            r"--limit: there is no gate limit 'max_recal_drop'; there are max_recall_drop",
        ),
        (["min_questions"], "", "limit must be given as name=value, got 'min_questions'"),
        (["min_questions=many"], "", "gate limit min_questions must be a number, got 'many'"),
        (["min_questions=nan"], "", "gate limit min_questions must be a number, got nan"),
        (["drop_confidence=1"], "", "drop_confidence must be at least 0.5 and below 1, got 1.0"),
        (["load_timeout_s=0"], "", "load_timeout_s must be above 0, got 0.0"),
        ([], "[gates]\nmax_mrr = 1", r"table \[gates\] of .*: there is no gate limit 'max_mrr'"),
        ([], '[gates]\nmin_questions = "5"', "gate limit min_questions must be a number, got '5'"),
        ([], "[gates]\nmin_questions = true", "gate limit min_questions must be a number, got True"),
        ([], "gates = 3", r"\[gates\] must be a table"),
        ([], "[gates", "is not TOML"),
    ],
)
def test_a_wrong_limit_is_refused_by_name(tmp_path, settings, text, said):
    file = tmp_path / "nightly.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_limits(settings, file=file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the limits in .*none\.toml: No such file"):
        read_limits(file=tmp_path / "none.toml")
