"""New items from files and from logs: what is taken, what is counted, what is refused and how it is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index_builder.build import build_bundle
from index_builder.bundle import load_bundle
from index_builder.bundle_files import FEATURES, BundleError, check_bundle
from index_builder.delta import Delta, DeltaError, DeltaFile, NewItem
from index_builder.delta_index import build_delta_index
from index_builder.item_definitions import read_item_definitions
from index_builder.item_features import read_catalogue
from index_builder.publish import Store
from index_builder.similar_items import count_similar, find_new_items
from model.data.interactions import Interactions
from tests import forked


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    as_csv = written(
        tmp_path / "new.csv", "item_id,similar_item_ids,genre,year\nn1,a|b,Drama|War,1999\nn2,c,,\n"
    )
    as_json = written(
        tmp_path / "new.jsonl",
        '{"item_id": "n1", "similar_item_ids": ["a", "b"], "features": ["genre=Drama", "genre=War", '
        '"year=1999"]}\n\n{"item_id": "n2", "similar_item_ids": {"c": 1.0}}\n',
    )
    assert read_item_definitions(as_csv) == read_item_definitions(as_json)
    assert read_item_definitions(as_csv)[0] == NewItem(
        "n1", {"a": 1.0, "b": 1.0}, ("genre=Drama", "genre=War", "year=1999")
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id\n1\n", "one of them item_id"),
        ("a.csv", "item_id,x\nn1\n", "line 2: it has not 2 fields"),
        ("a.csv", "item_id,x\nn1,1,2\n", "line 2: it has not 2 fields"),
        ("a.csv", "item_id\nn1\n", "line 2: item 'n1' has neither"),
        ("a.csv", "item_id,x\nn1,1\nn1,2\n", "line 3: item 'n1' is defined twice"),
        ("a.csv", "item_id,x\n", "defines no item"),
        ("a.jsonl", "{\n", "line 1: it is no definition"),
        ("a.jsonl", "[]\n", "line 1: it is no definition.*item_id is needed"),
        ("a.jsonl", '{"item_id": "n", "colour": 1}\n', "'colour' is not a known field"),
        ("a.jsonl", '{"item_id": "n", "features": "a"}\n', "features must be a list"),
        ("a.jsonl", '{"item_id": "n", "similar_item_ids": 5}\n', "line 1: it is no definition"),
        ("a.jsonl", '{"item_id": "n", "similar_item_ids": {"a": "2"}}\n', "line 1: item 'n': .*weight '2'"),
        ("a.jsonl", '{"item_id": null, "features": ["a"]}\n', "line 1: item_id: got None"),
        ("a.jsonl", '{"item_id": "n", "features": [7]}\n', "line 1: features: got 7"),
    ],
)
def test_what_is_no_definition_is_named_by_file_and_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DeltaError, match=message) as refused:
        read_item_definitions(written(tmp_path / name, text))
    assert str(tmp_path / name) in str(refused.value)


def log_of(*sequences: list[tuple[str, int]]) -> Interactions:
    names = sorted({name for sequence in sequences for name, _ in sequence})
    index = {name: m + 1 for m, name in enumerate(names)}
    rows = [entry for sequence in sequences for entry in sequence]
    return Interactions.create(
        user_ids=[f"u{u}" for u in range(len(sequences))],
        item_ids=names,
        offsets=np.cumsum([0, *map(len, sequences)]),
        item_index=np.array([index[name] for name, _ in rows], dtype=np.int32),
        timestamp=np.array([time for _, time in rows], dtype=np.int64),
    )


def test_similar_items_are_counted_within_sessions_by_hand() -> None:
    log = log_of(
        [("a", 0), ("new", 10), ("b", 20), ("c", 9_000)],  # c is another session's
        [("a", 0), ("new", 10), ("other-new", 20)],  # nothing is like an item that nobody knows
        [("d", 0)],
        [("new", 5), ("a", 6)],
    )
    known = {"a", "b", "c", "d"}
    assert count_similar(log, ["new", "unseen"], known=known) == {"new": {"a": 3.0, "b": 1.0}}
    assert count_similar(log, ["new"], known=known, session_gap_s=10_000)["new"].keys() == {"a", "b", "c"}
    assert find_new_items(log, known, min_occurrences=1) == ["new", "other-new"]
    assert find_new_items(log, known, min_occurrences=2) == ["new"]


def test_a_bundle_built_with_a_catalogue_places_items_by_features(checkpoint, tmp_path: Path) -> None:
    catalogue = written(
        tmp_path / "items.csv",
        "item_id,kind\n" + "".join(f"{name},k{n % 3}\n" for n, name in enumerate(checkpoint.item_ids)),
    )
    store = Store(tmp_path / "store")
    plain = build_bundle(checkpoint, store)
    bundle_id = build_bundle(checkpoint, store, catalogue=read_catalogue(catalogue))
    folder = tmp_path / "store" / bundle_id
    store.check(bundle_id)
    bundle = load_bundle(folder)
    assert bundle.features is not None
    assert set(bundle.features.tokens) == {"kind=k0", "kind=k1", "kind=k2"}
    said = Delta(
        {"n": NewItem("n", {}, ("kind=k1",)), "m": NewItem("m", {}, ("kind=k9",))}, {}, 1, "0" * 8, 1
    )
    placed = build_delta_index(said, bundle)
    assert placed is not None
    assert (placed.item_ids, placed.num_unplaced) == (["n"], 1)
    of_kind = bundle.item_embeddings[1::3].mean(axis=0) - bundle.item_embeddings.mean(axis=0)
    assert placed.embeddings[0] @ of_kind > 0
    without = build_delta_index(said, load_bundle(tmp_path / "store" / plain))
    assert without is not None
    assert (without.item_ids, without.num_unplaced) == ([], 2)

    features = folder / FEATURES
    sound = features.read_bytes()
    features.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(BundleError, match="features"):
        check_bundle(folder)
    features.unlink()
    with pytest.raises(BundleError, match=r"features.safetensors is missing"):
        check_bundle(folder)
    (tmp_path / "store" / plain / FEATURES).write_bytes(sound)
    with pytest.raises(BundleError, match=r"features.safetensors is not in its manifest"):
        check_bundle(tmp_path / "store" / plain)


def test_the_commands_add_from_logs_list_and_refuse_in_one_line(built_bundles, fill, tmp_path: Path) -> None:
    store, (bundle_id, *_) = fill(str(tmp_path / "store"), built_bundles[:1])
    store.publish(bundle_id)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from index_builder.cli import main; main()", *arguments]
        return forked.run(command, timeout=120)

    rows = [f"u{u},{item},{100 * u + t}" for u in range(5) for t, item in enumerate(("film-3-é", "fresh"))]
    log = written(tmp_path / "log.csv", "user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    found = run("add-items", store.url, "--logs", log)
    assert found.returncode == 0, found.stderr
    assert DeltaFile(store.url).read().items["fresh"].similar == {"film-3-é": 5.0}
    assert "fresh  (1 similar, 0 features)" in run("delta", store.url).stdout
    assert run("delete-items", store.url, "--ids", "fresh", "--ids", "film-3-é").returncode == 0
    listed = written(tmp_path / "ids", "film-3-é\n\n")
    assert run("undelete-items", store.url, "--file", listed).returncode == 0
    assert DeltaFile(store.url).deleted() == ["fresh"]
    for arguments, message in (
        (("add-items", store.url), "nothing to add"),
        (("add-items", store.url, "--logs", log), "'fresh' was deleted: undelete it"),
        (("add-items", store.url, "--logs", log, "--min-occurrences", 9), "no item occurs 9 times"),
        (("add-items", tmp_path / "nowhere", "--logs", log), "nothing is published"),
        (("delete-items", store.url), "no item was named"),
        (("delete-items", tmp_path / "nowhere", "--ids", "a"), "no bundle store at"),
    ):
        refused = run(*arguments)
        assert refused.returncode == 2, (arguments, refused.stderr)
        assert refused.stderr.count("\n") == 1
        assert message in refused.stderr
