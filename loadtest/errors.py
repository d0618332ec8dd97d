"""The one error of a load test that is meant for people: a single line, then exit code 2."""

from __future__ import annotations


class LoadtestError(ValueError):
    """A wrong input or an unusable service; the message names the field, the value and the remedy."""
