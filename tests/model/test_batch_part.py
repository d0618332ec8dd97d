"""A batch computed in parts: its random numbers and its losses are those of the whole."""

from __future__ import annotations

import pytest
import torch

from model.batch_part import BatchPart, computing_part, draw_rows, mean_of_whole
from model.dropout import Dropout
from model.losses import kl_loss, sample_negatives, sampled_tower_loss, tower_loss
from model.noise import fresh_noise

SIZE = 6
PARTS = [slice(0, 2), slice(2, 6)]


def _part(rows: slice, whole_count: int) -> BatchPart:
    return BatchPart(rows, SIZE, add_up=lambda count: torch.tensor(whole_count))


def test_random_numbers_of_parts_are_rows_of_the_whole_and_leave_the_generator_where_it_would_be() -> None:
    dropout = Dropout(0.5)
    values = torch.ones(SIZE, 5, 3)

    def draw(rows: slice) -> list[torch.Tensor]:
        torch.manual_seed(1)
        count = len(values[rows])
        noise = fresh_noise((2 * count, 5, 3), values.device)  # two routes
        drawn = [dropout(values[rows]), noise(3), draw_rows(lambda number: torch.rand(number, 1), count)]
        return [*drawn, torch.get_rng_state()]

    whole = draw(slice(0, SIZE))
    for rows in PARTS:
        with computing_part(_part(rows, SIZE)):
            part = draw(rows)
        assert torch.equal(part[0], whole[0][rows])
        assert torch.equal(part[1], whole[1][2 * rows.start : 2 * rows.stop])
        assert torch.equal(part[2], whole[2][rows])
        assert torch.equal(part[3], whole[3])


def test_losses_of_parts_add_up_to_that_of_the_whole_also_where_they_count_unevenly() -> None:
    user, items = torch.randn(SIZE, 2, 4), torch.randn(30, 4)
    target = torch.randint(30, (SIZE,))
    predicted, drift = torch.randn(2, SIZE, 5, 4)
    known = torch.arange(5) < torch.tensor([1, 5, 2, 5, 0, 4])[:, None]
    probability = torch.rand(30).softmax(0)

    def losses(rows: slice) -> torch.Tensor:
        torch.manual_seed(2)
        negative, log_expected_count = sample_negatives(probability, 9)
        return torch.stack(
            [
                tower_loss(user[rows], items, target[rows]),
                sampled_tower_loss(user[rows], items, target[rows], negative, log_expected_count),
                kl_loss(predicted[rows], drift[rows], known[rows]),
            ]
        )

    def shares(rows: slice) -> torch.Tensor:
        with computing_part(_part(rows, SIZE)):
            of_targets = losses(rows)[:2]
        with computing_part(_part(rows, int(known.sum()))):
            return torch.cat([of_targets, losses(rows)[2:]])

    assert torch.allclose(sum(map(shares, PARTS)), losses(slice(0, SIZE)), rtol=1e-5)


def test_a_batch_that_is_whole_is_left_as_it_is_and_rows_of_something_else_are_refused() -> None:
    assert mean_of_whole(torch.tensor(3.0), 5) == 3.0
    with (
        computing_part(_part(PARTS[1], SIZE)),
        pytest.raises(AssertionError, match="7 rows are not of the 4"),
    ):
        draw_rows(torch.rand, 7)
