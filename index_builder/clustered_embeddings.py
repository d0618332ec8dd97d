"""Made-up item and user embeddings that are as hard to search as trained ones.

Isotropic vectors have no neighbours worth the name, and tight far-apart clusters are found by any index:
both mislead. What is generated here was fitted to this project's T2Diff trained on MovieLens-1M (3,706
items, d = 64), and agrees with it in what an index feels:

| figure (3,706 items) | trained | generated |
|---|---|---|
| spread explained by 16 / 60 / 256 k-means centres | .41 / .54 / .65 | .46 / .58 / .69 |
| effective number of dimensions | 10.9 | 10.9 |
| local dimension at 20 / 100 neighbours | 13 / 11 | 15 / 12 |
| coefficient of variation of lengths | .25 | .25 |
| length of the mean / root mean square length | .47 | .46 |
| cosine of user embeddings to that mean | -.32 | -.21 |
| best score, in deviations above the mean score | 3.2 | 3.2 |
| top 20 found in 1 / 2 / 4 / 8 / 16 of 60 lists | .50 / .68 / .83 / .94 / .99 | .51 / .71 / .86 / .95 / .99 |

How: √M centres with sizes by a power law; around them normal items; both with variances that fall as
1 / rank over randomly turned axes; all items moved along one direction by log-normal amounts (the less
popular, the farther, in trained tables), and users near an item, turned away from that direction.
Only the agreement at 3,706 items was measured; that √M centres hold at a million is an assumption.
"""

from __future__ import annotations

import numpy as np

_CENTRE_SHARE = 0.55  # of the variance
_OFFSET = 0.5  # mean displacement of the items along the shared direction, spreads being 1
_OFFSET_SPREAD = 0.7  # of its logarithm
_USER_NOISE = 0.7
_USER_TURN = 0.35
_CHUNK = 250_000


def generate_embeddings(
    num_items: int, dim: int, *, num_users: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Item embeddings (M, D) and user embeddings (Q, D) to search them with, float32; seeded.

    The items must be compared by inner product.
    """
    rng = np.random.default_rng(seed)
    deviation = np.arange(1, dim + 1, dtype=np.float32) ** -0.5  # (D,) variances fall as 1 / rank
    deviation /= np.linalg.norm(deviation)
    axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)  # (D, D)
    shared = rng.standard_normal(dim).astype(np.float32)
    shared /= np.linalg.norm(shared)
    num_centres = max(1, round(num_items**0.5))
    centres = rng.standard_normal((num_centres, dim), dtype=np.float32) * deviation * _CENTRE_SHARE**0.5
    chance = 1.0 / np.arange(1, num_centres + 1)
    chance /= chance.sum()
    items = np.empty((num_items, dim), dtype=np.float32)
    for start in range(0, num_items, _CHUNK):
        part = items[start : start + _CHUNK]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= deviation * (1 - _CENTRE_SHARE) ** 0.5
        part += centres[rng.choice(num_centres, size=len(part), p=chance)]
    liked = items[rng.integers(num_items, size=num_users)]  # (Q, D)
    noise = rng.standard_normal((num_users, dim), dtype=np.float32) * deviation * _USER_NOISE
    users = liked + noise
    users = users / np.linalg.norm(users, axis=1, keepdims=True) - _USER_TURN * shared
    for start in range(0, num_items, _CHUNK):
        part = items[start : start + _CHUNK]
        amount = rng.standard_normal((len(part), 1), dtype=np.float32) * _OFFSET_SPREAD
        part += _OFFSET * np.exp(amount - _OFFSET_SPREAD**2 / 2) * shared
        part[:] = part @ axes
    return items, np.ascontiguousarray(users @ axes, dtype=np.float32)
