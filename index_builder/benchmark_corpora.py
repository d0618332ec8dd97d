"""What `t2diff-index bench` searches: generated embeddings, or a bundle's own."""

from __future__ import annotations

from pathlib import Path

from index_builder.ann import KINDS
from index_builder.benchmark import Corpus
from index_builder.bundle import load_bundle
from index_builder.clustered_embeddings import generate_embeddings
from index_builder.embed_items import embed_prefixes


def generated_corpus(num_items: int, dim: int, *, num_users: int, seed: int) -> Corpus:
    """Embeddings like trained ones (`clustered_embeddings`)."""
    items, users = generate_embeddings(num_items, dim, num_users=num_users, seed=seed)
    return Corpus(size_label(num_items), items, users)


def bundle_corpus(path: Path, *, num_users: int) -> Corpus:
    """A bundle's item embeddings, and its user tower's after every behaviour of its canary sequences."""
    bundle = load_bundle(path)
    users = embed_prefixes(bundle.model, [case.sequence for case in bundle.canary], max_queries=num_users)
    if len(users) < 2:
        raise ValueError(f"bundle {bundle.bundle_id} has {len(users)} user embeddings, 2 are needed")
    items = bundle.item_embeddings
    return Corpus(size_label(len(items)), items, users, bundle.model.metric)


def size_label(num_items: int) -> str:
    """3706 -> `3706`, 108000 -> `108k`, 1000000 -> `1m`"""
    for unit, name in ((1_000_000, "m"), (1_000, "k")):
        if num_items >= unit and num_items % unit == 0:
            return f"{num_items // unit}{name}"
    return str(num_items)


def parse_sizes(text: str) -> list[int]:
    """Raises ValueError for anything but positive whole numbers between commas."""
    sizes = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if min(sizes) < 1:
        raise ValueError(f"items must be whole numbers separated by commas, got {text!r}")
    return sizes


def parse_kinds(text: str) -> list[str]:
    """All kinds for nothing. Raises ValueError for a kind that is not there."""
    names = [part.strip() for part in text.split(",") if part.strip()] or list(KINDS)
    for name in names:
        if name not in KINDS:
            raise ValueError(f"index kind must be one of {', '.join(KINDS)}, got {name!r}")
    return names
