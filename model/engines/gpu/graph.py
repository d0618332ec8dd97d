"""The exact engine as one CUDA graph per bucket: gather, reverse process, attention and, if asked, top-K.

What a graph replays costs the device's time only; without it the host spends longer on launching some
thirty operations a step than the device on running them.
Not run: no GPU was at hand when this was written; `tests/model/engines/gpu` runs it on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.batch import SequenceBatch
from model.engines.gpu.program import Answer, TowerProgram
from model.engines.gpu.request_layout import RequestLayout, bucket_of, parts_of, rounded_up
from model.engines.gpu.staging import PinnedRing
from model.engines.interface import TowerEngine

MAX_EXCLUDED = 16_384
_LEAST_EXCLUDED, _LEAST_TOP_K = 64, 16
_WARM_UPS = 2


@dataclass(frozen=True)
class GraphKey:
    """What a graph is captured for.   top_k: 0 for the tower alone"""

    bucket: int
    num_excluded: int = 0
    top_k: int = 0


@dataclass(frozen=True)
class CapturedGraph:
    """A graph, and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    layout: RequestLayout
    inputs: torch.Tensor
    ring: PinnedRing
    prepared: object
    answer: Answer


class GraphTower(TowerEngine):
    """A program's graphs, captured as they are first needed. One call at a time."""

    def __init__(self, name: str, program: TowerProgram, *, tolerance: float = TowerEngine.tolerance) -> None:
        """Raises ValueError for a model that is not on a GPU."""
        super().__init__(program.model)
        if self.device.type != "cuda":
            raise ValueError(f"the model is on {self.device}, a graph needs a GPU: use tower_engine exact")
        self.name, self.tolerance = name, tolerance
        self.program = program
        self._graphs: dict[GraphKey, CapturedGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def user_embeddings(self, batch: SequenceBatch, keys: Sequence[int]) -> torch.Tensor:
        """(B, R, D). The first batch of a bucket captures its graph, which takes seconds."""
        parts = []
        for rows in parts_of(len(keys)):
            key = GraphKey(bucket_of(rows.stop - rows.start))
            answer = self._replay(key, _rows(batch, rows), keys[rows])
            parts.append(answer.user[: rows.stop - rows.start].clone())  # the next replay overwrites it
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def recall(
        self, batch: SequenceBatch, keys: Sequence[int], exclude: Sequence[np.ndarray | None], top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tower and the exact search over all items in one graph.

        exclude: per request the item indices never to return, at most MAX_EXCLUDED
        -> item indices (B, K), best first, 0 where fewer are allowed, and scores (B, K), -inf there
        Raises ValueError for a top_k or a number of exclusions out of range.
        """
        num_excluded, fetched = search_sizes(self.program.model.num_items, exclude, top_k)
        items = np.zeros((len(keys), top_k), dtype=np.int64)
        scores = np.full((len(keys), top_k), -np.inf, dtype=np.float32)
        for rows in parts_of(len(keys)):
            size = rows.stop - rows.start
            key = GraphKey(bucket_of(size), num_excluded, fetched)
            answer = self._replay(key, _rows(batch, rows), keys[rows], exclude[rows])
            assert answer.scores is not None
            assert answer.items is not None
            scores[rows] = answer.scores[:size, :top_k].cpu().numpy()
            items[rows] = answer.items[:size, :top_k].cpu().numpy()
        return items, scores

    def _replay(
        self,
        key: GraphKey,
        batch: SequenceBatch,
        keys: Sequence[int],
        exclude: Sequence[np.ndarray | None] | None = None,
    ) -> Answer:
        if key not in self._graphs:
            with torch.cuda.device(self.device):
                self._graphs[key] = self._capture(key)
        captured = self._graphs[key]
        captured.layout.write(captured.ring.slot(), batch, keys, exclude)
        captured.ring.send(captured.inputs)
        captured.graph.replay()
        return captured.answer

    def _capture(self, key: GraphKey) -> CapturedGraph:
        program = self.program
        layout = RequestLayout(key.bucket, program.model.max_length, program.routes, key.num_excluded)
        inputs = torch.zeros(layout.size, dtype=torch.int64, device=self.device)
        request = layout.parts(inputs)
        request.length.fill_(1)
        prepared = program.prepare(request)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        # Products in fp32 as on the CPU: cuDNN would round its inputs to TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):  # libraries allocate and choose on their first calls
                    program.run(request, prepared, key.top_k)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                answer = program.run(request, prepared, key.top_k)
        return CapturedGraph(graph, layout, inputs, PinnedRing(layout.size), prepared, answer)


def search_sizes(num_items: int, exclude: Sequence[np.ndarray | None], top_k: int) -> tuple[int, int]:
    """How many exclusions a request and how many results a graph holds for this batch, a few sizes in all.

    Raises ValueError for a top_k or a number of exclusions out of range.
    """
    if not 1 <= top_k <= num_items:
        raise ValueError(f"top_k must be in 1..{num_items}, the number of items, got {top_k}")
    longest = max((len(items) for items in exclude if items is not None), default=0)
    if longest > MAX_EXCLUDED:
        raise ValueError(
            f"exclude has {longest} items for a request, at most {MAX_EXCLUDED} fit: use an index"
        )
    return rounded_up(longest, least=_LEAST_EXCLUDED), min(rounded_up(top_k, least=_LEAST_TOP_K), num_items)


def _rows(batch: SequenceBatch, rows: slice) -> SequenceBatch:
    return SequenceBatch(
        batch.item_index[rows], batch.timestamp[rows], batch.length[rows], batch.request_time[rows]
    )
