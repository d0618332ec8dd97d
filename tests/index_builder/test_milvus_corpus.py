"""What of a corpus in Milvus needs no Milvus: what a manifest may say of it, what a search may return.

The rest runs against a real one: `tests/scale/test_milvus.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.ann import build_index
from index_builder.build import build_bundle
from index_builder.milvus_access import MilvusAccess, check_milvus_url
from index_builder.milvus_corpus import Corpus
from index_builder.milvus_search import _tidied
from index_builder.publish import Store
from index_builder.searchers import SearchFailedError
from tests.untrained import untrained_checkpoint

BUILD = "0123456789abcdef" * 2
RECORD = {
    "url": "http://milvus:19530",
    "collection": f"t2diff_{BUILD}",
    "build": BUILD,
    "num_lists": 0,
    "num_items": 60,
    "dim": 8,
    "sha256": "0" * 64,
}


def manifest(**changed: Any) -> dict[str, Any]:
    record = RECORD | changed
    return {"build": BUILD, "counts": {"items": 60}, "index": {"kind": "milvus", "milvus": record}}


@pytest.mark.parametrize(
    "url", ["http://milvus:19530", "https://milvus.internal", "http://127.0.0.1:19530/catalogue"]
)
def test_an_address_of_a_server_is_taken(url: str) -> None:
    check_milvus_url(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://root:secret@milvus:19530", "T2DIFF_MILVUS_TOKEN"),
        ("corpus.db", "milvus-lite server"),
        ("/var/lib/corpus.db", "milvus-lite server"),
        ("unix:/tmp/milvus.sock", "milvus_url must be"),
        ("http://", "milvus_url must be"),
        ("http://milvus:port", "milvus_url is not a URL"),
        ("http://milvus:19530/db?token=secret", "leave out what follows"),
    ],
)
def test_another_address_is_refused_with_what_to_do(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        MilvusAccess(url)
    if "@" in url:
        assert "secret" not in str(refused.value)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(MilvusAccess("http://milvus:19530", "root:secret"))


def test_a_record_is_read_back_as_it_was_written() -> None:
    corpus = Corpus.of(manifest())
    assert corpus is not None
    assert corpus.record() == RECORD
    assert Corpus.of({"index": {"kind": "flat"}}) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"collection": "t2diff_" + "f" * 32},
        {"collection": f"t2diff_{'f' * 32}", "build": "f" * 32},
        {"url": "http://root:secret@milvus:19530"},
        {"num_items": 61},
    ],
)
def test_a_record_that_is_not_this_bundles_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"collection|milvus_url|61 of 60"):
        Corpus.of(manifest(**changed))


def test_without_an_address_a_build_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--milvus-url"):
        build_bundle(untrained_checkpoint(0), Store(tmp_path / "store"), index_kind="milvus")
    with pytest.raises(ValueError, match="t2diff-index build"):
        build_index(np.eye(4, dtype=np.float32), kind="milvus")


def test_what_is_no_row_or_no_number_is_no_result() -> None:
    """As a server could answer that was damaged, or holds rows twice."""
    nan, inf = float("nan"), float("inf")
    found = [
        ([3, 3, 99, -1, 2, 4, 5], [9.0, 9.0, 8.0, 7.0, nan, inf, 1.0]),
        ([], []),
        ([1, 0], [1.0, 2.0]),  # not best first
    ]
    scores, rows = _tidied(found, 3, 4, num_items=10)
    assert rows.tolist() == [[3, 5, -1, -1], [-1] * 4, [0, 1, -1, -1]]
    assert scores[:, 0].tolist() == [9.0, -inf, 2.0]
    with pytest.raises(SearchFailedError, match="2 of 3 queries"):
        _tidied(found[:2], 3, 4, num_items=10)
