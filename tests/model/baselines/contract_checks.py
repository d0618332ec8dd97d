"""What every baseline must satisfy, for the tests of single models to call."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from model.batch import Sequence, SequenceBatch, collate
from model.noise import Noise, request_noise
from model.two_tower import TwoTower

NUM_ITEMS = 30


def make_sequences(lengths: list[int]) -> list[Sequence]:
    """Random behaviours with pauses of different lengths, each asked for a while after the last one."""
    rng = np.random.default_rng(5)
    sequences = []
    for length in lengths:
        time = 1_000 + np.cumsum(rng.integers(1, 5_000, length + 1))
        sequences.append(Sequence(rng.integers(1, NUM_ITEMS + 1, length), time[:-1], int(time[-1])))
    return sequences


def with_random_targets(batch: SequenceBatch) -> SequenceBatch:
    return replace(batch, target=torch.randint(1, NUM_ITEMS + 1, batch.item_index.shape) * batch.mask)


def with_following_targets(batch: SequenceBatch, last: list[int]) -> SequenceBatch:
    """Each position's target is the next behaviour, the last one's is given."""
    following = torch.cat([batch.item_index[:, 1:], torch.zeros_like(batch.item_index[:, :1])], dim=1)
    return replace(
        batch, target=following.scatter(1, (batch.length - 1)[:, None], torch.tensor(last)[:, None])
    )


def make_noise(model: TwoTower, keys: list[int], length: int) -> Noise | None:
    return request_noise(keys, length, model.noise_dim) if model.num_steps else None


def shake(model: TwoTower) -> TwoTower:
    """Give every parameter but the item table values that matter, and count every pause as seen."""
    for name, parameter in model.named_parameters():
        if "item_table" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
        else:
            torch.nn.init.normal_(parameter[1:])
    for name, buffer in model.named_buffers():
        if name.endswith("seen"):
            buffer.fill_(True)
    return model


def check_contract(model: TwoTower) -> None:
    batch = with_random_targets(collate(make_sequences([6, 3, 1]), max_length=6))
    assert model.num_items == NUM_ITEMS
    assert model.user_embedding(batch).shape == (3, model.embedding_dim)
    assert model.item_embeddings().shape == (NUM_ITEMS, model.embedding_dim)
    model.observe_item_counts(torch.arange(NUM_ITEMS))
    loss = model.training_loss(batch)
    assert loss.ndim == 0
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is never trained"
        assert bool(torch.isfinite(parameter.grad).all()), name


def check_padding_never_changes_an_embedding(model: TwoTower) -> None:
    """Alone or beside longer sequences, with the same noise, a user's embedding is the same."""
    shake(model).eval()
    sequences = make_sequences([2, 6, 1, 5, 4])
    together = model.user_embedding(collate(sequences, max_length=6), make_noise(model, list(range(5)), 6))
    for number, sequence in enumerate(sequences):
        batch = collate([sequence], max_length=6)
        alone = model.user_embedding(batch, make_noise(model, [number], len(sequence.item_index)))
        assert torch.allclose(alone[0], together[number], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def check_dense_equals_serving(model: TwoTower, dense: torch.Tensor, whole: Sequence) -> None:
    """Position j of `dense` (N, D), computed for all of `whole`, is what the sequence cut after j gets."""
    length = len(whole.item_index)
    for cut in range(1, length + 1):
        asked = int(whole.timestamp[cut]) if cut < length else whole.request_time
        sequence = Sequence(whole.item_index[:cut], whole.timestamp[:cut], asked)
        served = model.user_embedding(collate([sequence], max_length=6), make_noise(model, [9], cut))
        assert torch.allclose(served[0], dense[cut - 1], atol=1e-5), f"position {cut - 1}"


def check_overfits_one_batch(model: TwoTower, *, updates: int = 250, learning_rate: float = 1e-2) -> None:
    sequences = make_sequences([6, 6, 5, 4])
    batch = with_following_targets(collate(sequences, max_length=6), last=[3, 9, 12, 25])
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(updates):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
    model.eval()
    assert best_items(model, batch) == [3, 9, 12, 25]


def best_items(model: TwoTower, batch: SequenceBatch) -> list[int]:
    """The item that each user's embedding scores highest, by the model's own metric."""
    user = model.user_embedding(batch, make_noise(model, list(range(len(batch.length))), 6))
    items = model.item_embeddings()
    scores = user @ items.T if model.metric == "inner_product" else -torch.cdist(user, items)
    best: list[int] = (scores.argmax(dim=1) + 1).tolist()
    return best
