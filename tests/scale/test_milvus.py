"""A corpus in a real Milvus (milvus-lite as server): built, served, swapped, rolled back, pruned, broken."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from pymilvus import MilvusClient

from index_builder import milvus_corpus
from index_builder.ann import AnnIndex, SearchFailedError, remote_index
from index_builder.build import build_bundle
from index_builder.bundle import Bundle, load_bundle
from index_builder.bundle_files import MANIFEST, BundleError
from index_builder.candidates import recall_sequences
from index_builder.clustered_embeddings import generate_embeddings
from index_builder.exact_search import search_exactly
from index_builder.fresh_process import check_in_fresh_process
from index_builder.gate_limits import GateLimits
from index_builder.milvus_access import MilvusAccess
from index_builder.milvus_corpus import CURRENT, Corpus, write_corpus
from index_builder.milvus_search import open_searcher
from index_builder.overlap import ann_overlap, tune
from index_builder.publish import Store
from index_builder.retention import Retention, prune
from model.checkpoint import Checkpoint
from model.noise import request_key
from tests.end_to_end.conftest import Serve, Served, serve, serve_one  # noqa: F401  (fixtures)
from tests.index_builder.small_night import EARLIER, LATER, night, write_log
from tests.scale.milvus_server import MilvusServer
from tests.untrained import untrained_checkpoint

NUM_ITEMS, DIM = 4_000, 64
STORE = "/stores/of/tests"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """Shared: those that harm one start their own."""
    server = MilvusServer(tmp_path_factory.mktemp("milvus"))
    yield server
    server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[MilvusServer]:
    folder = tmp_path / "milvus"
    folder.mkdir()
    server = MilvusServer(folder)
    yield server
    server.kill()


@pytest.fixture
def client(server: MilvusServer) -> Iterator[MilvusClient]:
    client = MilvusClient(server.url)
    yield client
    client.close()


def checkpoint_of(prefix: str, seed: int = 0, num_items: int = 300) -> Checkpoint:
    """An untrained model of items that tell which bundle they are of."""
    return untrained_checkpoint(
        seed, num_items=num_items, item_ids=[f"{prefix}{number}" for number in range(1, num_items + 1)]
    )


def build(store: Store, server: MilvusServer, prefix: str = "i", seed: int = 0, **other: Any) -> str:
    access = MilvusAccess(server.url, "root:not-for-the-manifest")
    return build_bundle(checkpoint_of(prefix, seed), store, index_kind="milvus", milvus=access, **other)


def corpus_of(store: Store, bundle_id: str) -> Corpus:
    corpus = Corpus.of(store.check(bundle_id))
    assert corpus is not None
    return corpus


def collection_of(embeddings: np.ndarray, server: MilvusServer, *, exact: bool = False) -> AnnIndex:
    """Embeddings in a collection of their own, not tuned."""
    access, build_id = MilvusAccess(server.url), np.random.default_rng().bytes(16).hex()
    item_ids = [str(row) for row in range(len(embeddings))]
    corpus = write_corpus(access, embeddings, item_ids, build=build_id, store_url=STORE, exact=exact)
    return remote_index(embeddings, open_searcher(corpus, access))


@pytest.mark.parametrize("kind", ["FLAT", "IVF_FLAT"])
def test_the_top_100_overlap_exact_search_by_099(
    kind: str, server: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "IVF_FLAT":
        monkeypatch.setattr(milvus_corpus, "_MAX_FLAT_ITEMS", 0)
    items, users = generate_embeddings(NUM_ITEMS, DIM, num_users=128)
    index = collection_of(items, server)
    assert index.corpus is not None
    assert bool(index.corpus.num_lists) == (kind == "IVF_FLAT")
    if index.max_width:
        tune(index, users[::2], target_overlap=0.995)  # other users see a little less
    overlap = ann_overlap(index, items, users[1::2])
    print(f"\n{kind}: overlap at 100 with exact search {overlap:.4f}, {index.width} lists, {NUM_ITEMS} items")
    assert overlap >= 0.99


def test_scores_and_order_are_those_of_exact_search(server: MilvusServer) -> None:
    items, users = generate_embeddings(500, 16, num_users=4, seed=3)
    scores, rows = collection_of(items, server).search(users, 50)
    for query, user in enumerate(users):
        right, right_rows = search_exactly(
            items, user, "inner_product", top_k=50, excluded=np.empty(0, np.int64)
        )
        np.testing.assert_allclose(scores[query], right, rtol=1e-5)
        assert rows[query].tolist() == right_rows.tolist()


@pytest.mark.parametrize("num_excluded", [0, 7, 150, 1_500, 3_990])
def test_exclusions_never_cost_a_result(num_excluded: int, server: MilvusServer) -> None:
    items, users = generate_embeddings(NUM_ITEMS, 16, num_users=3, seed=4)
    index = _shared_index(items, server)
    order = np.argsort(-(users @ items.T), axis=1)  # (B, M) the best are excluded: nothing is harder
    exclude = [order[0, :num_excluded], None, order[2, : num_excluded // 2]]
    scores, rows = index.search(users, [100, 10, 100], exclude)
    for query, wanted in enumerate((100, 10, 100)):
        out = exclude[query] if exclude[query] is not None else np.empty(0, np.int64)
        found = rows[query][rows[query] >= 0]
        assert len(set(found.tolist())) == min(wanted, NUM_ITEMS - len(out))
        assert not set(found.tolist()) & set(out.tolist())
        assert found.tolist() == order[query, len(out) : len(out) + wanted].tolist()
        assert np.isfinite(scores[query][rows[query] >= 0]).all()


def test_rows_to_skip_are_left_out_by_milvus_itself(server: MilvusServer) -> None:
    items, users = generate_embeddings(NUM_ITEMS, 16, num_users=1, seed=4)
    order = np.argsort(-(users[0] @ items.T))
    searcher = _shared_index(items, server)._searcher
    _, rows = searcher.search(users, fetch=100, keep=100, width=0, skip=np.sort(order[:1_500]))
    assert rows[0].tolist() == order[1_500:1_600].tolist()


_INDEXES: dict[tuple[str, bytes], AnnIndex] = {}


def _shared_index(items: np.ndarray, server: MilvusServer) -> AnnIndex:
    key = server.url, items.tobytes()
    if key not in _INDEXES:
        _INDEXES[key] = collection_of(items, server)
    return _INDEXES[key]


def test_a_bundle_names_its_collection_and_no_secret(
    server: MilvusServer, client: MilvusClient, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    bundle_id = build(store, server)
    manifest = (Path(store.bundle_url(bundle_id)) / MANIFEST).read_text()
    corpus = corpus_of(store, bundle_id)
    assert corpus.url == server.url
    assert corpus.num_items == 300
    assert "not-for-the-manifest" not in manifest
    assert json.loads(manifest)["index"]["ann_overlap_at_100"] >= 0.99
    told = client.query(corpus.collection, filter="row in [0, 299]", output_fields=["item_id"])
    assert {entry["item_id"] for entry in told} == {"i1", "i300"}


def test_it_answers_as_a_bundle_with_an_exact_index(server: MilvusServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    milvus = load_bundle(store.bundle_url(build(store, server)))
    flat = load_bundle(store.bundle_url(build_bundle(checkpoint_of("i"), store, index_kind="flat")))
    for case in flat.canary:
        ours, theirs = (_asked(bundle, case) for bundle in (milvus, flat))
        assert ours == theirs


def _asked(bundle: Bundle, case: Any) -> list[str]:
    key = request_key(case.seed, case.user_id)
    found = recall_sequences(bundle.model, bundle.index, [case.sequence], [key], top_k=100)
    return [bundle.item_ids[item - 1] for item in found.item_index[0]]


def test_the_gates_of_a_night_go_through_the_same_search(server: MilvusServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    bundle_id = build(store, server)
    for check in check_in_fresh_process(store.bundle_url(bundle_id), GateLimits()):
        assert check.passed, check
    MilvusClient(server.url).drop_collection(corpus_of(store, bundle_id).collection)
    loading, _ = check_in_fresh_process(store.bundle_url(bundle_id), GateLimits())
    assert loading.refused
    assert "is missing" in loading.detail


def test_nights_build_publish_and_prune_in_milvus(own_server: MilvusServer, tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv")
    access = {"index_kind": "milvus", "milvus": MilvusAccess(own_server.url)}
    keeping = Retention(keep=1, younger_than=timedelta(0))
    first = night(EARLIER, tmp_path, **access)
    second = night(LATER, tmp_path, retention=keeping, **access)
    third = night(LATER, tmp_path, retention=keeping, from_scratch=True, **access)
    outcomes = [one["outcome"] for one in (first, second, third)]
    assert outcomes == ["published"] * 3
    store = Store(tmp_path / "store")
    checks = {check["name"]: check for check in store.check(third["bundle"])["checks"]}
    assert checks["ann_overlap_at_100"]["value"] >= 0.99
    left = {corpus_of(store, bundle_id).collection for bundle_id in (second["bundle"], third["bundle"])}
    assert set(MilvusClient(own_server.url).list_collections()) == left


def test_the_alias_follows_publication_and_rollback(
    server: MilvusServer, client: MilvusClient, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    first, second = build(store, server, "a"), build(store, server, "b", seed=1)
    for act, served in (
        (lambda: store.publish(first), first),
        (lambda: store.publish(second), second),
        (store.rollback, first),
        (lambda: store.publish(first), first),
    ):
        act()
        assert store.current() == served
        assert client.describe_alias(CURRENT)["collection_name"] == corpus_of(store, served).collection
    read = client.query(CURRENT, filter="row == 0", output_fields=["item_id"])
    assert read[0]["item_id"] == "a1"


def test_prune_drops_what_belongs_to_bundles_that_are_gone_and_nothing_else(
    own_server: MilvusServer, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    built = sorted(build(store, own_server, seed=seed) for seed in range(4))
    for bundle_id in built:
        store.publish(bundle_id)
    named = {bundle_id: corpus_of(store, bundle_id).collection for bundle_id in built}
    client = MilvusClient(own_server.url)
    client.create_collection("somebody_elses", dimension=4)
    client.create_collection("t2diff_" + "0" * 32, dimension=4)  # our kind of name, without our mark
    other = build(Store(tmp_path / "other"), own_server)
    others = corpus_of(Store(tmp_path / "other"), other).collection
    orphan = collection_of(np.eye(4, dtype=np.float32), own_server).corpus
    assert orphan is not None  # another store's too, by its mark
    before, later = set(client.list_collections()), datetime.now(UTC) + 3 * DAY  # nothing is too young

    told = prune(store, keep=1, younger_than=timedelta(0), now=later, dry_run=True)
    assert set(told.collections) == {named[built[0]], named[built[1]]}
    assert set(client.list_collections()) == before
    done = prune(store, keep=1, younger_than=timedelta(0), now=later)
    assert done.removed == [built[1], built[0]]
    assert before - set(client.list_collections()) == {named[built[0]], named[built[1]]}
    assert others in client.list_collections()
    assert load_bundle(store.bundle_url(built[3])).index.num_items == 300
    assert store.rollback() == built[2]


def test_prune_drops_the_collection_of_a_build_that_was_killed_once_it_is_old(
    own_server: MilvusServer, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    kept = build(store, own_server)
    access, embeddings = MilvusAccess(own_server.url), np.eye(4, dtype=np.float32)
    left = write_corpus(access, embeddings, list("abcd"), build="ab" * 16, store_url=store.url, exact=True)
    now = datetime.now(UTC)
    assert prune(store, keep=1, younger_than=timedelta(0), now=now + 0.9 * DAY).collections == []
    assert prune(store, keep=1, younger_than=2 * DAY, now=now + 1.5 * DAY).collections == []
    done = prune(store, keep=1, younger_than=timedelta(0), now=now + 1.1 * DAY)
    assert done.collections == [left.collection]
    assert load_bundle(store.bundle_url(kept)).bundle_id == kept


def test_a_build_that_fails_leaves_no_collection(own_server: MilvusServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    checkpoint = checkpoint_of("i")
    object.__setattr__(
        checkpoint, "canary", [*checkpoint.canary, None]
    )  # fails after the collection is there
    with pytest.raises(Exception, match="None"):
        build_bundle(checkpoint, store, index_kind="milvus", milvus=MilvusAccess(own_server.url))
    assert MilvusClient(own_server.url).list_collections() == []


@pytest.mark.parametrize("harm", ["dropped", "a row less", "another's", "other dimensions", "unmarked"])
def test_a_collection_that_is_not_the_bundles_is_refused(
    harm: str, server: MilvusServer, client: MilvusClient, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    published = build(store, server)
    store.publish(published)
    bundle_id = build(store, server, seed=1)
    corpus = corpus_of(store, bundle_id)
    if harm == "a row less":
        client.delete(corpus.collection, ids=[17])
        message = "holds 299 rows for 300 items"
    else:
        client.drop_collection(corpus.collection)
        message = "is missing"
    if harm == "another's":
        message = "not that of this bundle"
        other = corpus_of(store, published)
        client.rename_collection(other.collection, corpus.collection)
    elif harm == "other dimensions":
        message = "embeddings of 4 dimensions"
        _create(server, corpus, dim=4)
    elif harm == "unmarked":
        message = "not that of this bundle"
        client.create_collection(corpus.collection, dimension=corpus.dim)
    with pytest.raises(BundleError, match=message):
        load_bundle(store.bundle_url(bundle_id))
    with pytest.raises(BundleError, match=message):
        store.publish(bundle_id)
    assert store.current() == published


def _create(server: MilvusServer, corpus: Corpus, *, dim: int) -> None:
    milvus = milvus_corpus.connect(MilvusAccess(), server.url)
    milvus.create(corpus.collection, dim=dim, mark={"build": corpus.build, "sha256": corpus.sha256})


def test_a_server_that_is_gone_is_named(own_server: MilvusServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    bundle_id = build(store, own_server)
    own_server.kill()
    with pytest.raises(BundleError, match=f"Milvus at {own_server.url}: "):
        load_bundle(store.bundle_url(bundle_id))
    with pytest.raises(OSError, match=own_server.url):
        store.publish(bundle_id)
    assert store.current() is None


def test_a_search_ends_by_its_time_limit_and_comes_back(own_server: MilvusServer) -> None:
    items, users = generate_embeddings(200, 8, num_users=2)
    index = collection_of(items, own_server)
    right = index.search(users, 10)[1].tolist()
    own_server.stop()
    for _ in range(2):  # whose own deadline is near sends nobody else away
        with pytest.raises(SearchFailedError) as late:
            index.within(60, time.monotonic() + 0.2).search(users, 10)
        assert late.value.asked
    with pytest.raises(SearchFailedError):
        index.within(0.3, time.monotonic() + 60).search(users, 10)
    with pytest.raises(SearchFailedError, match="left alone") as refused:
        index.search(users, 10)
    assert not refused.value.asked
    own_server.go_on()
    assert _eventually(index, users) == right
    with pytest.raises(SearchFailedError, match="no time is left"):
        index.within(0.3, time.monotonic()).search(users, 10)


def _eventually(index: AnnIndex, users: np.ndarray, patience_s: float = 30.0) -> list[list[int]]:
    give_up = time.monotonic() + patience_s
    while True:
        try:
            return index.within(2.0, give_up).search(users, 10)[1].tolist()
        except SearchFailedError:
            assert time.monotonic() < give_up, "it did not come back"
            time.sleep(0.1)


def ask(served: Served, user: int = 0, **other: Any) -> dict[str, Any]:
    """One recall; the sequence is of items that every bundle knows under its own prefix."""
    prefix = other.pop("prefix", "i")
    sequence = [{"item_id": f"{prefix}{number}"} for number in range(1, 5)]
    with served.client() as client:
        answer = client.post("/recall", json={"user_id": f"u{user}", "sequence": sequence, **other})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_recall_is_answered_from_milvus(server: MilvusServer, tmp_path: Path, serve: Serve) -> None:  # noqa: F811
    store = Store(tmp_path / "store")
    store.publish(build(store, server))
    served = serve(tmp_path / "store", milvus_timeout_ms=20_000)
    flat = Store(tmp_path / "flat")
    flat.publish(build_bundle(checkpoint_of("i"), flat, index_kind="flat"))
    beside = serve(tmp_path / "flat")
    for user in range(3):
        asked = {"top_k": 50, "exclude_item_ids": [f"i{number}" for number in range(200, 260)]}
        answer, right = ask(served, user, **asked), ask(beside, user, **asked)
        assert answer["route"] == "t2diff"
        assert [one["item_id"] for one in answer["candidates"]] == [
            one["item_id"] for one in right["candidates"]
        ]
    assert served.metric("t2diff_bundle_info", index="milvus") == 1


def test_new_and_deleted_items_are_served_beside_the_collection(
    server: MilvusServer,
    tmp_path: Path,
    serve: Serve,  # noqa: F811
) -> None:
    store = Store(tmp_path / "store")
    store.publish(build(store, server))
    served = serve(tmp_path / "store", milvus_timeout_ms=20_000)
    best = [one["item_id"] for one in ask(served, top_k=20)["candidates"]]
    add = {"items": [{"item_id": "new", "similar_item_ids": [best[0]]}]}
    assert httpx.post(f"{served.admin_url}/admin/items", json=add).status_code == 200
    gone = {"item_ids": best[1:4]}
    assert httpx.post(f"{served.admin_url}/admin/items/delete", json=gone).status_code == 200
    now = [one["item_id"] for one in ask(served, top_k=20)["candidates"]]
    assert "new" in now
    assert not set(now) & set(best[1:4])
    assert len(now) == 20


def test_two_bundles_swapped_under_requests_never_mix(
    server: MilvusServer,
    tmp_path: Path,
    serve: Serve,  # noqa: F811
) -> None:
    """Each bundle's items say whose they are: an answer holds those of the bundle that it names."""
    store = Store(tmp_path / "store")
    items = {build(store, server, prefix, seed=seed): prefix for seed, prefix in enumerate("ab")}
    first, second = items
    store.publish(first)
    served = serve(tmp_path / "store", milvus_timeout_ms=20_000)
    seen = []
    for swap in range(6):
        store.publish((second, first)[swap % 2])
        loading = httpx.post(f"{served.admin_url}/admin/reload", timeout=60)
        assert loading.json()["outcome"] == "loaded"
        for user in range(10):
            sequence = [{"item_id": f"{prefix}{number}"} for prefix in "ab" for number in (1, 2)]
            answer = ask(served, user, sequence=sequence, top_k=30)
            seen.append(answer["bundle"])
            assert answer["route"] == "t2diff"
            assert {one["item_id"][0] for one in answer["candidates"]} == {items[answer["bundle"]]}
    assert set(seen) == {first, second}
    rolled = httpx.post(f"{served.admin_url}/admin/rollback", timeout=60).json()
    assert rolled["outcome"] == "loaded"
    assert ask(served, prefix=items[rolled["bundle"]])["bundle"] == rolled["bundle"] == store.current()


def test_a_bundle_whose_collection_is_gone_is_refused_and_the_old_one_serves_on(
    server: MilvusServer,
    client: MilvusClient,
    tmp_path: Path,
    serve: Serve,  # noqa: F811
) -> None:
    store = Store(tmp_path / "store")
    first, second = build(store, server, "a"), build(store, server, "b", seed=1)
    store.publish(first)
    served = serve(tmp_path / "store", milvus_timeout_ms=20_000)
    store.publish(second)
    client.drop_alias(CURRENT)
    client.drop_collection(corpus_of(store, second).collection)
    refused = httpx.post(f"{served.admin_url}/admin/reload", timeout=60)
    assert refused.status_code == 409
    assert "is missing" in refused.json()["detail"]
    assert ask(served, prefix="a")["bundle"] == first


@pytest.mark.parametrize("outage", ["killed", "stopped"])
def test_without_milvus_the_popular_items_answer_in_time_until_it_is_back(
    outage: str,
    own_server: MilvusServer,
    tmp_path: Path,
    serve: Serve,  # noqa: F811
) -> None:
    store = Store(tmp_path / "store")
    store.publish(build(store, own_server))
    served = serve(tmp_path / "store", milvus_timeout_ms=500, deadline_ms=20_000)
    before = _from_model(served)
    own_server.kill() if outage == "killed" else own_server.stop()
    for user in range(5):
        answer = ask(served, user)
        assert (answer["route"], answer["reason"], answer["degraded"]) == ("popular", "index", True)
        assert len(answer["candidates"]) == 100
    assert served.metric("t2diff_fallbacks_total", reason="index", degraded="true") == 5
    assert httpx.get(f"{served.url}/v2/health/ready").status_code == 200
    own_server.start() if outage == "killed" else own_server.go_on()
    assert _from_model(served)["candidates"] == before["candidates"]


def _from_model(served: Served, patience_s: float = 60.0) -> dict[str, Any]:
    give_up = time.monotonic() + patience_s
    while (answer := ask(served))["route"] != "t2diff":
        assert time.monotonic() < give_up, answer
        time.sleep(0.1)
    return answer


def test_the_service_finds_milvus_where_it_is_now(
    own_server: MilvusServer,
    tmp_path: Path,
    serve: Serve,  # noqa: F811
) -> None:
    """A bundle built by way of another address: the setting stands in place of what it recorded."""
    store = Store(tmp_path / "store")
    other = own_server.url.replace("127.0.0.1", "localhost")
    access = MilvusAccess(other)
    store.publish(build_bundle(checkpoint_of("i"), store, index_kind="milvus", milvus=access))
    own_server.kill()
    own_server.move()
    served = serve(tmp_path / "store", milvus_url=own_server.url, milvus_timeout_ms=20_000)
    assert ask(served)["route"] == "t2diff"
