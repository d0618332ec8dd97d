"""The made-up log: a right model must beat popularity and the last item on it."""

from __future__ import annotations

import numpy as np
import pytest

from model.data.dataset import Split, global_time, leave_one_out
from model.data.interactions import DataError, Interactions, Rules
from model.data.reader import ReadOptions, read_interactions
from model.data.synthetic import DriftLog, DriftSettings, generate_drift_log

NOW = 1_800_000_000
SESSION_GAP_SECONDS = 3_600


def recall_at_20(scores: np.ndarray, target: np.ndarray) -> float:
    """Share of targets that fewer than 20 items beat.   scores: (Q, M)   target: (Q,) item index"""
    own = scores[np.arange(len(target)), target - 1]
    return float(((scores > own[:, None]).sum(axis=1) < 20).mean())


def popularity_scores(split: Split) -> np.ndarray:
    count = np.bincount(split.train.item_index - 1, minlength=split.train.num_items)
    return np.tile(count.astype(np.float64), (len(split.test), 1))


def transition_scores(split: Split) -> np.ndarray:
    """What followed the last item in training, popularity where nothing did."""
    train = split.train
    follows = np.zeros((train.num_items, train.num_items))
    for user in range(train.num_users):
        items = train.sequence(user).item_index - 1
        np.add.at(follows, (items[:-1], items[1:]), 1)
    last = [split.test.sequence(question).item_index[-1] - 1 for question in range(len(split.test))]
    return follows[last] + 1e-6 * popularity_scores(split)


def momentum_scores(split: Split, vector: np.ndarray, settings: DriftSettings) -> np.ndarray:
    """Go on from the last item as the last four headed, one step or one jump far."""
    wanted = []
    for question in range(len(split.test)):
        items, times, request_time = split.test.sequence(question)
        path = vector[items[-4:] - 1]
        here = path[-1]
        heading = here - path[0]
        heading = heading - (heading @ here) * here
        heading /= np.linalg.norm(heading) + 1e-9
        new_session = request_time - times[-1] > SESSION_GAP_SECONDS
        angle = settings.jump if new_session else settings.step
        wanted.append(np.cos(angle) * here + np.sin(angle) * heading)
    return np.array(wanted) @ vector.T


def vectors_of(log: DriftLog, interactions: Interactions) -> np.ndarray:
    """The true vectors in the order of item indices.   -> (M, L)"""
    row_of = {item_id: row for row, item_id in enumerate(log.item_ids)}
    return log.item_vector[[row_of[item_id] for item_id in interactions.item_ids]]


@pytest.mark.parametrize("seed", range(4))
def test_a_right_model_clearly_beats_popularity_and_the_last_item(seed):
    settings = DriftSettings()
    log = generate_drift_log(seed=seed, now=NOW, settings=settings)
    interactions = log.interactions()
    split = leave_one_out(interactions)
    vector = vectors_of(log, interactions)
    target = split.test.target
    popular = recall_at_20(popularity_scores(split), target)
    last_item = max(
        recall_at_20(transition_scores(split), target),
        recall_at_20(
            vector[[split.test.sequence(q).item_index[-1] - 1 for q in range(len(target))]] @ vector.T, target
        ),
    )
    momentum = recall_at_20(momentum_scores(split, vector, settings), target)
    final_position = {}
    for user, position in zip(log.user, log.position, strict=True):  # in order of time: the last one stays
        final_position[log.user_ids[user]] = position
    truth = np.array([final_position[interactions.user_ids[user]] for user in split.test.user])
    oracle = recall_at_20(truth @ vector.T, target)
    assert 0.05 < popular < 0.2
    assert popular + 0.2 < last_item
    assert last_item + 0.15 < momentum
    assert momentum + 0.1 < oracle


def test_without_momentum_the_last_item_is_as_good_as_the_heading():
    """The margin above is the planted drift's, not the yardstick's."""
    settings = DriftSettings(turn=50.0)  # a new heading at every step
    log = generate_drift_log(seed=0, now=NOW, settings=settings)
    split = leave_one_out(log.interactions())
    vector = vectors_of(log, split.train)
    momentum = recall_at_20(momentum_scores(split, vector, settings), split.test.target)
    assert momentum < recall_at_20(transition_scores(split), split.test.target)


def test_the_log_has_the_size_and_shape_it_says():
    log = generate_drift_log(seed=3, now=NOW)
    events = np.bincount(log.user, minlength=2000)
    assert (len(log.user_ids), len(log.item_ids)) == (2000, 1000)
    assert (log.user_ids[17], log.item_ids[42]) == ("user-00017", "item-00042")
    assert 22 < events.mean() < 28
    assert events.min() >= 1
    assert (events < 5).any()  # the rules have something to drop
    assert log.timestamp.min() > NOW - 400 * 86_400
    assert NOW - 86_400 < log.timestamp.max() < NOW
    assert (np.diff(log.timestamp) >= 0).all()
    rows = log.interactions(Rules(min_interactions=1))
    gaps = np.concatenate([np.diff(rows.sequence(user).timestamp) for user in range(rows.num_users)])
    assert ((gaps < SESSION_GAP_SECONDS) | (gaps > 5 * SESSION_GAP_SECONDS)).all()
    assert 0.15 < (gaps > SESSION_GAP_SECONDS).mean() < 0.25
    items = [rows.sequence(user).item_index for user in range(rows.num_users)]
    assert all((sequence[1:] != sequence[:-1]).all() for sequence in items)


def test_equal_seeds_give_equal_logs_and_others_do_not():
    first, again = (generate_drift_log(num_users=50, num_items=40, seed=5, now=NOW) for _ in range(2))
    other = generate_drift_log(num_users=50, num_items=40, seed=6, now=NOW)
    later = generate_drift_log(num_users=50, num_items=40, seed=5, now=NOW + 7)
    assert first.interactions().fingerprint == again.interactions().fingerprint
    assert first.interactions().fingerprint != other.interactions().fingerprint
    np.testing.assert_array_equal(first.timestamp + 7, later.timestamp)
    np.testing.assert_array_equal(first.item, later.item)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_written_log_reads_back_as_the_same_interactions(tmp_path, name):
    log = generate_drift_log(num_users=80, num_items=60, seed=1, now=NOW)
    log.write_event_log(tmp_path / name)
    read = read_interactions([tmp_path / name], options=ReadOptions(now=NOW))
    assert read.fingerprint == log.interactions().fingerprint


def test_the_log_can_be_cut_in_time():
    split = global_time(generate_drift_log(num_users=300, num_items=100, seed=2, now=NOW).interactions())
    assert min(len(split.validation), len(split.test)) > 50


def test_the_clock_is_the_default_end():
    log = generate_drift_log(num_users=5, num_items=5)
    assert log.timestamp.max() > NOW - 86_400 * 365 * 2


def test_impossible_sizes_are_refused():
    with pytest.raises(DataError, match="num_users must be at least 1 and num_items 2, got 0 and 5"):
        generate_drift_log(num_users=0, num_items=5)
    with pytest.raises(DataError, match="now must be late enough"):
        generate_drift_log(num_users=5, num_items=5, now=1000)
