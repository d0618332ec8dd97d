"""Sequences for the load test's users."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.build import build_bundle
from index_builder.publish import Store
from loadtest.errors import LoadtestError
from loadtest.seeding import bundle_item_ids, seed_users, sequences_from_items, sequences_from_log
from model.batch import Sequence
from model.checkpoint import Checkpoint
from model.registry import build_model


def test_every_event_reaches_the_service_in_each_users_order(server):
    sequences = [[(f"i{n}", 1000 + n) for n in range(400)], [("a", None), ("b", 5)], [("c", 7)] * 700]
    done = []
    assert seed_users(server.url, iter(sequences), done.append) == 1102
    posted = server.seen()["posted"]
    assert sum(done) == 3
    assert all(len(events) <= 1000 for events in posted)
    for number, behaviours in enumerate(sequences, start=1):
        user = f"loadtest-user-{number:06d}"
        holding = [events for events in posted if any(event["user_id"] == user for event in events)]
        assert len(holding) == 1  # one request a user: order is kept whatever overtakes what
        events = [event for event in holding[0] if event["user_id"] == user]
        assert [(event["item_id"], event.get("timestamp")) for event in events] == behaviours


def test_a_refusal_names_what_the_service_said(server):
    server.behave(refuse_events=True)
    with pytest.raises(LoadtestError, match=r"422.*item_id: too long"):
        seed_users(server.url, iter([[("a", 1)]]), lambda done: None)


def test_random_sequences_repeat_with_the_seed_and_lie_in_the_past():
    def draw(seed):
        return list(
            sequences_from_items(
                ["a", "b", "c"], num_users=4, events_per_user=30, seed=seed, now=1_700_000_000
            )
        )

    assert draw(1) == draw(1) != draw(2)
    assert [len(behaviours) for behaviours in draw(1)] == [30] * 4
    for behaviours in draw(1):
        times = [when for _, when in behaviours]
        assert times == sorted(times)
        assert max(times) <= 1_700_000_000
        assert {item for item, _ in behaviours} == {"a", "b", "c"}


def test_sequences_of_a_log_are_real_users_last_events_in_time_order(tmp_path):
    log = tmp_path / "events.csv"
    rows = [f"u{user},item-{user}-{n},{1_700_000_000 + 60 * n}" for n in range(8) for user in range(3)]
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    sequences = list(sequences_from_log(log, num_users=5, events_per_user=6, seed=0))
    real = [[(f"item-{user}-{n}", 1_700_000_000 + 60 * n) for n in range(2, 8)] for user in range(3)]
    assert len(sequences) == 5
    assert all(behaviours in real for behaviours in sequences)
    assert all(behaviours in sequences for behaviours in real)  # everybody once before anybody twice
    assert sequences[3:] == sequences[:2]


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(LoadtestError, match=r"missing\.csv"):
        list(sequences_from_log(tmp_path / "missing.csv", num_users=5, events_per_user=6, seed=0))


def test_item_ids_come_from_the_published_bundle_and_an_unpublished_one_is_named(tmp_path):
    config = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3}
    item_ids = [f"item {number}" for number in range(1, 31)]
    sequences = [
        Sequence(np.arange(first, first + 5), 1_700_000_000 + np.arange(5), 1_700_000_100)
        for first in (1, 9, 20)
    ]
    checkpoint = Checkpoint(
        model=build_model("t2diff", config, num_items=30).eval(),
        model_name="t2diff",
        model_config=config,
        item_ids=item_ids,
        popular=np.arange(1, 31, dtype=np.int32),
        canary=sequences,
        metrics={},
        dataset_id="none",
        seed=0,
    )
    store = Store(tmp_path / "bundles")
    bundle_id = build_bundle(checkpoint, store)
    with pytest.raises(LoadtestError, match="nothing is published"):
        bundle_item_ids(store.url)
    store.publish(bundle_id)
    assert bundle_item_ids(store.url) == item_ids
