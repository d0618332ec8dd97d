"""Ids become numbers in order of first appearance."""

from __future__ import annotations

import pyarrow as pa

from model.data.vocabulary import UNUSABLE, Vocabulary


def test_ids_are_numbered_by_first_appearance_over_all_batches():
    vocabulary = Vocabulary()
    assert vocabulary.encode(pa.array(["b", "a", "b"])).tolist() == [0, 1, 0]
    assert vocabulary.encode(pa.array([b"c", b"a"])).tolist() == [2, 1]
    assert vocabulary.encode(pa.array([7, 7, 3])).tolist() == [3, 3, 4]
    assert vocabulary.encode(pa.array(["7"])).tolist() == [3]
    assert vocabulary.ids() == ["b", "a", "c", "7", "3"]


def test_missing_and_unfit_ids_have_no_number_and_leave_no_trace():
    vocabulary = Vocabulary()
    assert vocabulary.encode(pa.array(["a", None, "", "x" * 129, "\n", "b"])).tolist() == [
        0,
        *[UNUSABLE] * 4,
        1,
    ]
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array([None, "a"]))
    assert vocabulary.encode(dictionary).tolist() == [UNUSABLE, 0, UNUSABLE]
    assert vocabulary.ids() == ["a", "b"]
    assert vocabulary.encode(pa.array(["None"])).tolist() == [2]
    assert vocabulary.encode(dictionary).tolist() == [UNUSABLE, 0, UNUSABLE]  # no id is not the id "None"
