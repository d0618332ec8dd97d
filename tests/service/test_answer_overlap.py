"""Agreement of two answers, worked by hand."""

from __future__ import annotations

import pytest

from service.answer_overlap import agreement, rank_biased_overlap


def test_the_same_answer_agrees_wholly() -> None:
    ids, scores = list("abcdefgh"), [8.0, 7, 6, 5, 4, 3, 2, 1]
    measured = agreement(ids, scores, ids, scores)
    assert measured is not None
    assert measured.overlap == 1
    assert measured.rank_biased == pytest.approx(1)
    assert measured.score_shift == 0


def test_answers_with_nothing_in_common_agree_in_nothing() -> None:
    measured = agreement(["a", "b"], [3.0, 1.0], ["c", "d"], [1.0, 0.0])
    assert measured is not None
    assert (measured.overlap, measured.rank_biased, measured.score_shift) == (0, 0, 1.5)


def test_a_shorter_answer_is_measured_against_the_longer() -> None:
    measured = agreement(["a", "b"], [1.0, 1.0], ["a", "b", "c", "d"], [1.0, 1.0, 1.0, 1.0])
    assert measured is not None
    assert measured.overlap == 0.5


def test_nothing_is_said_about_an_empty_answer() -> None:
    assert agreement([], [], ["a"], [1.0]) is None
    assert agreement(["a"], [1.0], [], []) is None


def test_rank_biased_overlap_by_hand() -> None:
    """p = 0.5, abc against acd: X = 1, 1, 2; depths 1, 1/2, 2/3.

    2/3 * 1/8 + 1/2 / 1/2 * (1 * 1/2 + 1/2 * 1/4 + 2/3 * 1/8) = 1/12 + 1/2 + 1/8 + 1/12
    """
    assert rank_biased_overlap(list("abc"), list("acd"), 0.5) == pytest.approx(
        1 / 12 + 1 / 2 + 1 / 8 + 1 / 12
    )


def test_the_upper_places_count_more() -> None:
    control = list("abcdefghij")
    top_changed, bottom_changed = list("xbcdefghij"), list("abcdefghix")
    assert rank_biased_overlap(control, bottom_changed) > rank_biased_overlap(control, top_changed) + 0.1


def test_an_order_turned_round_agrees_less_than_the_same_order() -> None:
    control = list("abcdefghij")
    assert 0 < rank_biased_overlap(control, control[::-1]) < 0.75
