"""The only importer of pymilvus: collections, aliases and searches, each bounded in time.

pymilvus retries for minutes and logs a traceback for each failure. A search here is one call without retries,
which ends by its time limit whatever the server does; the others are told how long they may take. What goes
wrong is a MilvusError that names the server.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from index_builder.milvus_access import MilvusAccess

_PROPERTY = "t2diff"
ROW, ITEM_ID, EMBEDDING = "row", "item_id", "embedding"
_MAX_ID_BYTES = 512
_BATCH_BYTES = 4 << 20
_CONNECT_S = 5.0
_CALL_S = 10.0
_BUILD_S = 6 * 3600.0
_RECONNECT_MS = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 1_000,
    "grpc.max_reconnect_backoff_ms": 1_000,
}
"""gRPC's own default waits up to two minutes before it looks whether a server is back."""

logging.getLogger("pymilvus").setLevel(
    logging.CRITICAL + 1
)  # every error is raised, and told by who catches it


class MilvusError(OSError):
    """Milvus does not answer, or not as asked."""


@dataclass(frozen=True)
class Described:
    """A collection as the server tells it.   mark: empty on one that is not ours   dim: None: not ours"""

    mark: Mapping[str, Any]
    dim: int | None


class Milvus:
    """One server or cluster, perhaps one database of it."""

    def __init__(self, url: str, access: MilvusAccess, *, timeout_s: float = _CONNECT_S) -> None:
        """Raises MilvusError when it cannot be reached."""
        self.url = url
        with self._asking("it cannot be reached"):
            self._client = MilvusClient(
                uri=url, token=access.token, timeout=timeout_s, grpc_options=_RECONNECT_MS
            )

    def search(
        self,
        name: str,
        queries: np.ndarray,
        *,
        limit: int,
        params: Mapping[str, int],
        skip: Sequence[int],
        timeout_s: float,
    ) -> list[tuple[list[int], list[float]]]:
        """Rows and scores of each query as the server gives them.   queries: (B, D) float32"""
        with self._asking(f"collection {name} cannot be searched"):
            waiting: Any = self._client.search(
                name,
                list(queries),
                filter=f"{ROW} not in {list(skip)}" if skip else "",
                limit=limit,
                anns_field=EMBEDDING,
                search_params={"metric_type": "IP", "params": dict(params)},
                timeout=timeout_s,
                consistency_level="Eventually",  # it was complete before anybody could name it
                _async=True,  # the other way retries, and reconnects, beyond its time limit
            )
            return [(hits.ids, hits.distances) for hits in waiting.result(timeout=timeout_s)]

    def describe(self, name: str) -> Described | None:
        """None when there is no such collection."""
        with self._asking(f"collection {name} cannot be looked at"):
            if not self._client.has_collection(name, timeout=_CALL_S):
                return None
            told = self._client.describe_collection(name, timeout=_CALL_S)
        fields = {entry["name"]: entry for entry in told["fields"]}
        dim = fields.get(EMBEDDING, {}).get("params", {}).get("dim")
        texts = (dict(told.get("properties") or {}).get(_PROPERTY), told.get("description"))
        mark = next((mark for mark in map(_read_mark, texts) if mark), {})
        return Described(mark, None if dim is None else int(dim))

    def count(self, name: str) -> int:
        """The rows that a search can find now."""
        with self._asking(f"collection {name} cannot be counted"):
            told = self._client.query(
                name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=_CALL_S
            )
        return int(told[0]["count(*)"])

    def create(self, name: str, *, dim: int, mark: Mapping[str, Any]) -> None:
        """An empty collection that carries `mark`."""
        text = json.dumps(mark)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
        schema.add_field(ROW, DataType.INT64, is_primary=True)
        schema.add_field(ITEM_ID, DataType.VARCHAR, max_length=_MAX_ID_BYTES)
        schema.add_field(EMBEDDING, DataType.FLOAT_VECTOR, dim=dim)
        with self._asking(f"collection {name} cannot be created"):
            self._client.create_collection(name, schema=schema, properties={_PROPERTY: text}, timeout=_CALL_S)

    def fill(self, name: str, embeddings: np.ndarray, item_ids: Sequence[str], *, num_lists: int) -> None:
        """Insert row m as (m, item_ids[m], embeddings[m]), index all by inner product, and load it.

        num_lists: of an inverted file; 0: every search compares with all rows
        """
        size = max(1, _BATCH_BYTES // (4 * embeddings.shape[1] + _MAX_ID_BYTES))
        with self._asking(f"collection {name} cannot be filled"):
            for start in range(0, len(embeddings), size):
                rows = range(start, min(start + size, len(embeddings)))
                entries = [{ROW: m, ITEM_ID: item_ids[m], EMBEDDING: embeddings[m]} for m in rows]
                self._client.insert(name, entries, timeout=_CALL_S)
            self._client.flush(name, timeout=_BUILD_S)
            indexes = self._client.prepare_index_params()
            kind, params = ("IVF_FLAT", {"nlist": num_lists}) if num_lists else ("FLAT", {})
            indexes.add_index(EMBEDDING, index_type=kind, metric_type="IP", params=params)
            self._client.create_index(name, indexes, timeout=_BUILD_S)
            self._client.load_collection(name, timeout=_BUILD_S)

    def load(self, name: str, *, timeout_s: float = _BUILD_S) -> None:
        """Make a collection searchable; nothing happens where it is."""
        with self._asking(f"collection {name} cannot be loaded"):
            self._client.load_collection(name, timeout=timeout_s)

    def names(self) -> list[str]:
        """Of every collection."""
        with self._asking("its collections cannot be listed"):
            return list(self._client.list_collections(timeout=_CALL_S))

    def drop(self, name: str) -> None:
        """Remove a collection, with aliases that name it; one that is not there is no error."""
        with self._asking(f"collection {name} cannot be dropped"):
            for alias in self.aliases(name):
                self._client.drop_alias(alias, timeout=_CALL_S)
            self._client.drop_collection(name, timeout=_CALL_S)

    def aliases(self, name: str) -> list[str]:
        """Those of one collection."""
        with self._asking(f"aliases of collection {name} cannot be listed"):
            if not self._client.has_collection(name, timeout=_CALL_S):
                return []
            return list(self._client.list_aliases(name, timeout=_CALL_S)["aliases"])

    def point(self, alias: str, name: str) -> None:
        """Let an alias name a collection from now on, in one step."""
        with self._asking(f"alias {alias} cannot be switched to {name}"):
            if alias in self._client.list_aliases(timeout=_CALL_S)["aliases"]:
                self._client.alter_alias(name, alias, timeout=_CALL_S)
            else:
                self._client.create_alias(name, alias, timeout=_CALL_S)

    @contextmanager
    def _asking(self, failing: str) -> Iterator[None]:
        """Whatever pymilvus or gRPC raises is a MilvusError.   failing: what it then means"""
        try:
            yield
        except MilvusError:
            raise
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, ValueError, TypeError) as error:
            raise MilvusError(f"Milvus at {self.url}: {failing}: {_first_line(error)}") from error


def _read_mark(text: Any) -> dict[str, Any]:
    try:
        mark = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return mark if isinstance(mark, dict) and "build" in mark else {}


def _first_line(error: Exception) -> str:
    told = str(getattr(error, "message", "") or error) or type(error).__name__
    for one in (error, error.__cause__):
        if isinstance(one, grpc.Call):
            told = f"{one.code().name}, {one.details()}"
    return told.strip().splitlines()[0][:200]
