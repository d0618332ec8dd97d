"""The Ray cluster: connecting to it, and running a worker over blocks of work, results in the blocks' order.

The only importer of ray. Ray Data gives the blocks to a pool of actors and gives a block again when its
actor or node dies; a worker must therefore be a function of its block alone. Ray's own processes trust each
other: whoever reaches a cluster's ports can run code on it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from model.bulk.block_fields import Fields, from_table, to_table
from model.bulk.surroundings import BulkError, surroundings_of, surroundings_problem

Worker = Callable[[dict[str, Any]], Iterator[Fields]]
"""worker(block) -> its results, one or more; a ValueError or an OSError ends the job, with its words"""

_CONNECT_TIMEOUT_S = 5
_SETTINGS = b"\x04"
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
_STALLED_AFTER_S = 900
"""No block takes that long: nothing that finishes in the meantime means that nothing can run."""

_log = logging.getLogger(__name__)


class Cluster:
    """A cluster that this process is connected to."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.blocks_by_node: dict[str, int] = {}
        """Node id -> how many results of the last run came from it."""

    @property
    def num_cpus(self) -> int:
        """Of all nodes that are alive."""
        return int(self._ray.cluster_resources().get("CPU", 1))

    def nodes(self) -> dict[str, str]:
        """The nodes that are alive, id -> name and address."""
        return {
            node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            for node in self._ray.nodes()
            if node["Alive"]
        }

    def run(
        self,
        worker: Callable[..., Worker],
        arguments: Mapping[str, Any],
        blocks: Sequence[Fields],
        *,
        threads: int = 1,
    ) -> Iterator[dict[str, Any]]:
        """The results of all blocks, in the blocks' order, as they are finished.

        worker: called with `arguments` once in each actor, which then works with what that returned; a class
        or function of a module that every node has   threads: CPU threads of the mathematics, as here
        Raises BulkError when a worker says why it cannot go on, or when the cluster cannot.
        """
        if not blocks:
            return
        before = self.nodes()
        self.blocks_by_node = {}
        results = self._mapped(worker, arguments, blocks, threads)
        expected = 0
        try:
            for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                for fields in from_table(table):
                    if fields["problem"]:
                        raise BulkError(fields["problem"])
                    assert fields["block"] in (expected, expected + 1), "blocks came back out of order"
                    expected = fields["block"]
                    node = fields.pop("node")
                    self.blocks_by_node[node] = self.blocks_by_node.get(node, 0) + 1
                    yield fields
        except self._ray.exceptions.RayError as error:
            raise BulkError(f"--ray: the cluster could not finish: {_last_line(error)}") from error
        except self._ray.data.exceptions.ExecutionTimeoutError as error:
            raise BulkError(
                f"--ray: no block was finished within {_STALLED_AFTER_S} s: look at `ray status`; more nodes "
                "may be needed, or fewer --threads"
            ) from error
        for lost in before.keys() - self.nodes().keys():
            _log.warning("node %s was lost; Ray did its blocks again on other nodes", before[lost])

    def _mapped(
        self,
        worker: Callable[..., Worker],
        arguments: Mapping[str, Any],
        blocks: Sequence[Fields],
        threads: int,
    ) -> Any:
        """The lazy Ray dataset of results."""
        data = self._ray.data
        rows = [to_table({"block": number, **block}) for number, block in enumerate(blocks)]
        inputs = data.from_arrow(rows)
        inputs.context.execution_options.preserve_order = True
        inputs.context.execution_no_progress_timeout_s = _STALLED_AFTER_S
        inputs.context.enable_progress_bars = False
        inputs.context.print_on_execution_start = False
        size = max(1, min(self.num_cpus // threads, len(blocks)))
        return inputs.map_batches(
            _Host,
            fn_constructor_kwargs={
                "worker": worker,
                "arguments": dict(arguments),
                "threads": threads,
                "expected": surroundings_of(worker),
            },
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=data.ActorPoolStrategy(size=size),
            # Half of what it uses: an actor must find room again on the nodes that are left when one dies.
            # Ray Data spreads actors over the nodes by itself.
            num_cpus=threads / 2,
        )


class _Host:
    """The actor around a worker: it tells problems as results, which a raised error would bury."""

    def __init__(
        self,
        worker: Callable[..., Worker],
        arguments: dict[str, Any],
        threads: int,
        expected: dict[str, str],
    ) -> None:
        import ray
        import torch

        self._node = ray.get_runtime_context().get_node_id()
        torch.set_num_threads(threads)
        self._problem = surroundings_problem(expected, surroundings_of(worker))
        self._work: Worker | None = None
        if not self._problem:
            try:
                self._work = worker(**arguments)
            except (ValueError, OSError) as error:
                self._problem = _one_line(error)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        (block,) = from_table(table)
        number = block.pop("block")
        try:
            if self._work is None:
                raise BulkError(self._problem)
            for fields in self._work(block):
                yield to_table({"block": number, "node": self._node, "problem": "", **fields})
        except (ValueError, OSError) as error:
            yield to_table({"block": number, "problem": _one_line(error) or type(error).__name__})


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster at `address`: HOST:PORT, auto for the one that this machine belongs to, or local to start
    one on this machine that ends with the connection. Within a connection, this gives the same one.

    Raises BulkError when Ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no figures about this use go anywhere
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is raised, and told in one line
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BulkError(
            f"--ray needs Ray, which is not installed ({error}): pip install 't2diff-recall[ray]'"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield Cluster(ray)
        return
    if address not in ("local", "auto"):
        check_answers(address)
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        raise BulkError(
            f"--ray {address}: {_one_line(error)[:300].rstrip('.')}; this machine must be a node of the "
            f"cluster: run `ray start --address=HOST:PORT` on it, or give --ray local"
        ) from error
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raise BulkError unless something listens at `address` that may be Ray: Ray itself tries for minutes.

    A cluster's head speaks gRPC: HTTP/2, whose every connection begins with a SETTINGS frame of the server
    (RFC 9113, 3.4). One behind TLS says nothing to this; then it is left to Ray.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65_536) or "/" in host:
        raise BulkError(f"--ray must be local, auto or the HOST:PORT of a cluster's head, got {address!r}")
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S) as connection:
            connection.sendall(_HTTP2_PREFACE)
            said = _first_bytes(connection)
    except OSError as error:
        raise BulkError(
            f"--ray {address}: no cluster answers there ({_one_line(error)}): start one with "
            f"`ray start --head --port={port}`, or give --ray local"
        ) from error
    if said and said[3:4] != _SETTINGS:
        raise BulkError(
            f"--ray {address}: what answers there is not Ray: give the address of a cluster's head"
        )


def _first_bytes(connection: socket.socket) -> bytes:
    try:
        return connection.recv(9)
    except OSError:
        return b""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _last_line(error: BaseException) -> str:
    """What was raised in the end: Ray's errors end with the text of the one that they carry."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:500]
