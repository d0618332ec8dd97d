from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from model.baselines.bert4rec import BERT4Rec, BERT4RecConfig, cloze_sequence
from model.batch import SequenceBatch, collate
from tests.model.baselines.tiny_models import make_sequences, shake, tiny_model, with_following_targets

_model = partial(tiny_model, BERT4Rec)


def _batch() -> SequenceBatch:
    return with_following_targets(collate(make_sequences([6, 3]), max_length=6), last=[21, 22])


def test_a_training_sequence_ends_with_its_last_target() -> None:
    batch = _batch()
    item_index, maskable = cloze_sequence(batch)
    assert item_index[0].tolist() == [*batch.item_index[0].tolist(), 21]
    assert item_index[1].tolist() == [*batch.item_index[1, :3].tolist(), 22, 0, 0, 0]
    assert maskable.tolist() == [[False] + [True] * 6, [False] + [True] * 3 + [False] * 3]
    assert batch.target is not None
    only_last = replace(batch, target=batch.target * (torch.arange(6) == batch.length[:, None] - 1))
    item_index, maskable = cloze_sequence(only_last)
    assert item_index[1].tolist() == [*batch.item_index[1, :3].tolist(), 22, 0, 0, 0]
    assert maskable.nonzero().tolist() == [[0, 6], [1, 3]]


def test_masks_are_drawn_from_what_may_be_masked_and_every_sequence_has_one() -> None:
    batch = _batch()
    maskable = cloze_sequence(batch)[1].repeat(500, 1)
    length = batch.length.repeat(500)
    masked = _model(mask_share=0.3, mask_last_share=0.0).draw_mask(maskable, length)
    assert not bool((masked & ~maskable).any())
    assert bool(masked.any(dim=1).all())
    assert 0.27 < float(masked[::2, 1:6].float().mean()) < 0.33
    only_last = _model(mask_last_share=1.0).draw_mask(maskable, length)
    assert only_last[:2].nonzero().tolist() == [[0, 6], [1, 3]]


def test_a_masked_item_is_hidden_from_every_position_and_others_are_seen_from_both_sides() -> None:
    model = shake(_model(embedding_dim=32)).eval()
    item_index = torch.tensor([[4, 5, 6, 7, 8]])
    masked = torch.tensor([[False, False, True, False, False]])
    states = model.states(item_index, masked)
    assert torch.equal(model.states(torch.tensor([[4, 5, 30, 7, 8]]), masked), states)
    for other in ([4, 9, 6, 7, 8], [4, 5, 6, 9, 8]):
        assert not torch.allclose(model.states(torch.tensor([other]), masked)[0, 2], states[0, 2], atol=1e-2)


def test_serving_reads_a_mask_in_the_place_of_the_next_item() -> None:
    """As training does when only the last item is masked."""
    model = shake(_model()).eval()
    item_index, maskable = cloze_sequence(_batch())
    masked = torch.zeros_like(maskable)
    masked[0, 6] = masked[1, 3] = True
    trained = model.states(item_index, masked)[masked]
    assert torch.allclose(model.user_embedding(_batch()), trained, atol=1e-5)


def test_one_layer_as_the_paper_prints_it() -> None:
    """Eq. 1-7 written out head by head for one sequence whose third item is masked."""
    model = shake(_model(num_layers=1)).eval()
    items, masked = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[False, False, True, False]])
    block = model.blocks[0]
    tokens = model.items.item_table.weight[items[0]].clone()
    tokens[2] = model.mask_token
    hidden = model.norm(tokens + model.position.weight[:4])  # H (4, D)
    w_query, w_key, w_value = block.of_query_key_value.weight.chunk(3)
    b_query, b_key, b_value = block.of_query_key_value.bias.chunk(3)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        query = hidden @ w_query[head].T + b_query[head]
        key = hidden @ w_key[head].T + b_key[head]
        value = hidden @ w_value[head].T + b_value[head]
        heads.append(F.softmax(query @ key.T / math.sqrt(4), dim=-1) @ value)  # d / h = 4
    attended = block.norm_attention(hidden + block.of_output(torch.cat(heads, dim=-1)))  # A
    inner, outer = block.feed_forward[0], block.feed_forward[2]
    affine = attended @ inner.weight.T + inner.bias
    gelu = affine * torch.special.ndtr(affine)  # x·Φ(x)
    out = block.norm_feed_forward(attended + gelu @ outer.weight.T + outer.bias)
    projected = out @ model.of_output.weight.T + model.of_output.bias
    expected = model.norm_output(projected * torch.special.ndtr(projected))
    assert torch.allclose(model.states(items, masked)[0], expected, atol=1e-4)


def test_the_loss_is_the_mean_over_masked_items_of_their_negative_log_probability() -> None:
    """Eq. 7, 8, with the mask of the last item alone."""
    model = _model(mask_last_share=1.0).eval()
    batch = _batch()
    user = model.user_embedding(batch)
    probability = F.softmax(user @ model.items.item_table.weight[1:].T, dim=-1)  # (2, M)
    expected = -(probability[0, 20].log() + probability[1, 21].log()) / 2
    assert model.training_loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"mask_share must be in \[0, 1\), got 1.5"):
        BERT4RecConfig(mask_share=1.5)
    with pytest.raises(ValueError, match=r"mask_last_share must be in \[0, 1\], got -1"):
        BERT4RecConfig(mask_last_share=-1)
