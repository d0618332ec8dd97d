"""Why a user gets these candidates: session, nearest behaviours, and the diffusion itself.

Everything here is computed again by the plain model, away from the event loop and the device thread: it
costs the time of some requests, and holds none of them up.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from index_builder.bundle import Bundle
from model.batch import UNKNOWN_TIME, Sequence, SequenceBatch, collate
from model.generation_trace import GenerationTrace, trace_generation
from model.noise import request_key, request_noise
from model.sessions import session_start
from model.t2diff import T2Diff
from service.packed_sequence import StoredSequence

_SHOWN_ITEMS = 400
"""Of the catalogue, drawn behind the path; the two axes are fitted to them."""
_SHOWN_CANDIDATES = 20


def sequence_rows(
    bundle: Bundle, behaviours: StoredSequence, sequence: Sequence | None
) -> list[dict[str, Any]]:
    """One row a behaviour, oldest first: what it is, whether the model reads it, whether in its session."""
    read = 0 if sequence is None else len(sequence.item_index)
    first_in_session = _first_in_session(bundle, sequence)
    known_from_end = 0
    rows = []
    for item_id, timestamp in reversed(list(zip(behaviours.item_ids, behaviours.timestamps, strict=True))):
        known = item_id in bundle.item_index_of
        place = read - 1 - known_from_end if known else -1  # in `sequence`
        known_from_end += known
        rows.append(
            {
                "item_id": item_id,
                "title": title_of(bundle, item_id),
                "timestamp": None if timestamp == UNKNOWN_TIME else timestamp,
                "read": place >= 0,
                "in_session": place >= 0 and first_in_session is not None and place >= first_in_session,
            }
        )
    return rows[::-1]


def candidate_rows(
    bundle: Bundle, item_ids: Collection[str], scores: Collection[float], behaviours: StoredSequence
) -> list[dict[str, Any]]:
    """One row a candidate, with the behaviour whose item lies nearest to it, by cosine."""
    history = [item_id for item_id in dict.fromkeys(behaviours.item_ids) if _served_row(bundle, item_id) >= 0]
    seen = _directions(bundle, history)  # (H, D)
    rows = []
    for item_id, score in zip(item_ids, scores, strict=True):
        near = None
        if history and _served_row(bundle, item_id) >= 0:
            cosine = seen @ _directions(bundle, [item_id])[0]
            best = int(cosine.argmax())
            near = {
                "item_id": history[best],
                "title": title_of(bundle, history[best]),
                "cosine": round(float(cosine[best]), 4),
            }
        title = title_of(bundle, item_id)
        rows.append({"item_id": item_id, "title": title, "score": round(score, 5), "near": near})
    return rows


def generation(
    bundle: Bundle, user_id: str, seed: int, sequence: Sequence, candidates: Collection[str]
) -> dict[str, Any] | None:
    """The reverse diffusion of the first route, or None for a model without one.

    cosine: of x̂ at each step to the final one   the others: points of a plane, the two main axes of the
    catalogue's embeddings; noised is z_t as an item, predicted is x̂
    """
    model = bundle.model
    if not isinstance(model, T2Diff) or model.num_steps == 0:
        return None
    device = next(model.parameters()).device
    batch = collate([sequence], max_length=model.max_length).to(device)
    length = batch.item_index.shape[1]
    noise = request_noise([request_key(seed, user_id)], length, model.noise_dim, device=device)
    trace = trace_generation(model, batch, noise)
    return {
        "steps": trace.steps,
        "cosine": _rounded(torch.cosine_similarity(trace.predicted, trace.final[None], dim=-1)),
        **_plane(bundle, model, batch, trace, candidates),
    }


def title_of(bundle: Bundle, item_id: str) -> str | None:
    """The item's title, or None where the bundle knows none."""
    item = bundle.item_index_of.get(item_id)
    return (bundle.titles[item - 1] or None) if bundle.titles is not None and item else None


def _plane(
    bundle: Bundle,
    model: T2Diff,
    batch: SequenceBatch,
    trace: GenerationTrace,
    candidates: Collection[str],
) -> dict[str, Any]:
    step = max(1, model.num_items // _SHOWN_ITEMS)
    some = torch.arange(1, model.num_items + 1, step)
    best = map(bundle.item_index_of.get, list(candidates)[:_SHOWN_CANDIDATES])
    shown = torch.tensor([item for item in best if item], dtype=torch.long)
    items = _embedded(model, some)
    mean = items.mean(dim=0)
    axes = torch.linalg.svd(items - mean, full_matrices=False).Vh[:2]  # (2, D)

    def points(values: torch.Tensor) -> list[list[float]]:
        return [_rounded(point) for point in (values.cpu() - mean) @ axes.T]

    return {
        "items": points(items),
        "history": points(_embedded(model, batch.item_index[0].cpu())),
        "candidates": points(_embedded(model, shown)),
        "noised": points(trace.noised),
        "predicted": points(trace.predicted),
        "final": points(trace.final[None])[0],
    }


@torch.inference_mode()
def _embedded(model: T2Diff, item_index: torch.Tensor) -> torch.Tensor:
    """(S,) item indices -> (S, D) on the scale of x̂, on the CPU"""
    device = next(model.parameters()).device
    return model.embed(item_index[None].to(device))[0].float().cpu()


def _first_in_session(bundle: Bundle, sequence: Sequence | None) -> int | None:
    """The place in `sequence` where its last session begins; None for a model that knows no sessions."""
    config = getattr(bundle.model, "config", None)
    length = getattr(config, "session_length", None)
    if sequence is None or length is None:
        return None
    timestamp = torch.as_tensor(np.asarray(sequence.timestamp)[None])
    gap = getattr(config, "session_gap_seconds", None)
    return int(session_start(timestamp, session_length=length, session_gap_seconds=gap)[0, -1])


def _served_row(bundle: Bundle, item_id: str) -> int:
    """Its row in `bundle.item_embeddings`, or -1."""
    item = bundle.item_index_of.get(item_id)
    if item is None:
        return -1
    if bundle.rows.served_index is None:
        return item - 1
    return int(bundle.rows.served(np.array([item]))[0]) - 1


def _directions(bundle: Bundle, item_ids: Collection[str]) -> np.ndarray:
    rows = np.array([_served_row(bundle, item_id) for item_id in item_ids], dtype=np.int64)
    embeddings = np.asarray(bundle.item_embeddings[rows], dtype=np.float32)
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
