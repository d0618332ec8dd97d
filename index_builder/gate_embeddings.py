"""Gates on embeddings, ids and parts: are they sound, do they agree, do they resemble the last ones?"""

from __future__ import annotations

import numpy as np
import torch

from index_builder.bundle import Bundle
from index_builder.bundle_rows import served_rows, tower_embeddings
from index_builder.gate_limits import GateLimits
from index_builder.quality import Check, check_embeddings, skip

NO_LAST = "there is no current bundle to compare with"
_MAX_SAMPLE = 50_000
_ROWS_AT_ONCE = 1 << 18
_VALUES_AT_ONCE = 1 << 24


def check_parts(candidate: Bundle, current: Bundle | None, limits: GateLimits) -> list[Check]:
    """Manifest, model, table, ids and index must say the same of themselves, and what the last ones said."""
    manifest, model, index = candidate.manifest, candidate.model, candidate.index
    embeddings, counts = candidate.item_embeddings, manifest["counts"]
    said = {
        "embedding_dim": [counts["embedding_dim"], model.embedding_dim, embeddings.shape[1], index.dim],
        "items": [counts["items"], len(candidate.item_ids), len(embeddings), index.num_items],
        "metric": [manifest["metric"], model.metric, index.metric],
        "index kind": [manifest["index"]["kind"], index.kind],
    }
    wrong = {name: values for name, values in said.items() if len(set(values)) > 1}
    parts = Check(
        "parts_that_disagree",
        len(wrong),
        at_most=0,
        detail="; ".join(f"{name}: {values}" for name, values in wrong.items()),
        remedy="the bundle is put together wrong: build it again",
    )
    if current is None:
        return [parts, skip("contract_changes", NO_LAST)]
    ours, theirs = _contract(candidate), _contract(current)
    changed = [f"{name} {theirs[name]} -> {ours[name]}" for name in ours if ours[name] != theirs[name]]
    contract = Check(
        "contract_changes",
        len(changed),
        at_most=limits.max_contract_changes,
        detail="; ".join(changed),
        remedy="if the model was changed on purpose, allow it once (max_contract_changes)",
    )
    return [parts, contract]


def check_catalogue(candidate: Bundle, current: Bundle | None, limits: GateLimits) -> list[Check]:
    """No id twice, and the last bundle's items still there."""
    ids = candidate.item_ids
    digests = np.fromiter(map(hash, ids), np.int64, len(ids))  # equal ones: equal ids, but for 1 in 2^64
    duplicates = Check(
        "duplicate_item_ids",
        len(ids) - len(np.unique(digests)),
        at_most=0,
        remedy="two rows claim one id: build the bundle again from a clean vocabulary",
    )
    if current is None:
        return [duplicates, skip("items_ratio", NO_LAST), skip("items_kept_share", NO_LAST)]
    last_ids = current.item_ids
    sample = _sample(len(last_ids))
    kept = np.mean(served_rows(candidate, [last_ids[row] for row in sample.tolist()]) >= 0)
    remedy = "see whether the log, or the rule that retires items, lost a part of the catalogue"
    return [
        duplicates,
        Check(
            "items_ratio",
            len(ids) / len(last_ids),
            at_least=limits.min_items_ratio,
            at_most=limits.max_items_ratio,
            detail=f"{len(ids):,} items, {len(last_ids):,} in the last bundle",
            remedy=f"{remedy} (min_items_ratio, max_items_ratio)",
        ),
        Check(
            "items_kept_share",
            float(kept),
            at_least=limits.min_kept_share,
            detail="of the last bundle's items",
            remedy=f"{remedy} (min_kept_share)",
        ),
    ]


def check_item_embeddings(candidate: Bundle, current: Bundle | None, limits: GateLimits) -> list[Check]:
    """Whether every vector is a sound one, the item tower's own, and like the last bundle's."""
    embeddings = candidate.item_embeddings
    checks = [
        _finite_weights(candidate),
        *check_embeddings(
            embeddings,
            max_zero_share=limits.max_zero_share,
            max_norm_ratio=limits.max_norm_over_median,
            max_duplicate_share=limits.max_duplicate_share,
        ),
    ]
    later = ("embedding_spread", "embedding_tower_difference", "embedding_norm_ratio", "embedding_similarity")
    if any(check.refused for check in checks[:2]):
        return checks + [skip(name, "weights or embeddings are not finite") for name in later]
    checks += [
        Check(
            later[0],
            spread(embeddings),
            at_least=limits.min_spread,
            detail="1 - mean cosine of two items",
            remedy="the items collapsed into one direction: train again (min_spread)",
        ),
        Check(
            later[1],
            _tower_difference(candidate),
            at_most=limits.max_tower_difference,
            detail="share of items whose embedding is not what the item tower gives",
            remedy="embeddings and weights are of two builds: build the bundle again",
        ),
    ]
    if current is None:
        return checks + [skip(name, NO_LAST) for name in later[2:]]
    return checks + _compare_with_last(candidate, current, limits)


def spread(embeddings: np.ndarray) -> float:
    """1 - the mean cosine of two different items: 0 where all point the same way.   embeddings: (M, D)

    By Σ_{i≠j} u_i·u_j = |Σ u|² - Σ |u|² over unit vectors.
    """
    rows = embeddings[_sample(len(embeddings))].astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    count = len(unit)
    if count < 2:
        return 0.0
    return float(1 - (np.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1)))


def linear_cka(ours: np.ndarray, theirs: np.ndarray) -> float:
    """How alike two sets of embeddings of the same items lie, 0..1 (Kornblith et al. 2019, Eq. 3).

    |YᵀX|²_F / (|XᵀX|_F |YᵀY|_F) of centred X, Y: turning, mirroring or scaling either space changes nothing,
    for only inner products between items count.   ours: (M, D)   theirs: (M, E)
    """
    x, y = (values.astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (ours, theirs))
    own = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.square(x.T @ y).sum() / own) if own > 0 else 0.0


def _compare_with_last(candidate: Bundle, current: Bundle, limits: GateLimits) -> list[Check]:
    ours, theirs = _embeddings_in_common(candidate, current)
    if len(ours) < 2:
        reason = "the two bundles have no two items in common (items_kept_share says so too)"
        return [skip("embedding_norm_ratio", reason), skip("embedding_similarity", reason)]
    ratio = _median_norm(ours) / max(_median_norm(theirs), 1e-30)
    return [
        Check(
            "embedding_norm_ratio",
            ratio,
            at_least=1 / limits.max_norm_ratio,
            at_most=limits.max_norm_ratio,
            detail=f"median norm of {len(ours):,} items in common over the last bundle's",
            remedy="scores of the two bundles would not compare: see the learning rate and the last step of "
            "training (max_norm_ratio)",
        ),
        Check(
            "embedding_similarity",
            linear_cka(ours, theirs),
            at_least=limits.min_similarity,
            detail=f"linear CKA with the last bundle over {len(ours):,} items in common",
            remedy="rows may have changed places with each other: see the vocabulary, and whether another "
            "model was trained on purpose (min_similarity)",
        ),
    ]


def _embeddings_in_common(candidate: Bundle, current: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """Of a sample of the last bundle's items that both have.   -> (S, D), (S, E)"""
    rows = _sample(len(current.item_ids))
    own_rows = served_rows(candidate, [current.item_ids[row] for row in rows.tolist()])
    both = own_rows >= 0
    return candidate.item_embeddings[own_rows[both]], current.item_embeddings[rows[both]]


def _finite_weights(bundle: Bundle) -> Check:
    bad = {
        name: sum(
            int(part.numel() - torch.isfinite(part).sum())
            for part in weight.reshape(-1).split(_VALUES_AT_ONCE)
        )
        for name, weight in bundle.model.state_dict().items()
        if weight.is_floating_point()
    }
    named = [f"{count:,} in {name}" for name, count in bad.items() if count]
    return Check(
        "weights_non_finite",
        sum(bad.values()),
        at_most=0,
        detail=", ".join(named[:3]),
        remedy="training diverged: lower its learning rate",
    )


def _tower_difference(bundle: Bundle) -> float:
    """The share of rows of `item_embeddings` that are not the item tower's output, rounding aside."""
    different = 0
    for start in range(0, len(bundle.item_embeddings), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        close = np.isclose(tower_embeddings(bundle, rows), bundle.item_embeddings[rows], rtol=1e-4, atol=1e-6)
        different += int(np.count_nonzero(~close.all(axis=1)))
    return different / len(bundle.item_embeddings)


def _contract(bundle: Bundle) -> dict[str, object]:
    return {
        "model": bundle.model_name,
        "embedding_dim": bundle.model.embedding_dim,
        "metric": bundle.model.metric,
    }


def _median_norm(embeddings: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(embeddings, axis=1)))


def _sample(size: int) -> np.ndarray:
    """Rows spread evenly, all of them when there are few.   -> (min(size, 50,000),) int64"""
    return np.unique(np.linspace(0, size - 1, min(size, _MAX_SAMPLE)).astype(np.int64))
