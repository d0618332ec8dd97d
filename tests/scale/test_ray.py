"""Bulk work on a real Ray cluster of three nodes on this machine: what one machine gives, byte for byte."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("ray")

from index_builder.bulk_embedding import embed_items_on
from index_builder.embed_items import embed_items
from model.bulk import cluster as ray_cluster
from model.bulk.cluster import Cluster, connected
from model.bulk.ranking import rank_targets_on
from model.bulk.reading import read_interactions_on
from model.bulk.surroundings import BulkError
from model.checkpoint import load_checkpoint, save_checkpoint
from model.data.dataset import leave_one_out
from model.data.reader import read_interactions
from model.data.synthetic import generate_drift_log
from model.evaluation import rank_targets
from model.metrics import question_metrics
from model.registry import build_model
from model.significance import bootstrap_intervals
from tests.untrained import untrained_checkpoint

ROOT = Path(__file__).parents[2]
NUM_WORKERS = 2
OBJECT_STORE = {"object_store_memory": 150 << 20}
DAT_ITEMS = 900_000
"""Each of the 14 blocks of 65,536 items takes a second or so."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head and two more nodes, of one CPU each: raylets, object stores and workers of their own."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_enable_metrics_collection="0")
    from ray.cluster_utils import Cluster as LocalNodes

    local = LocalNodes(initialize_head=True, head_node_args={"num_cpus": 1, **OBJECT_STORE})
    for _ in range(NUM_WORKERS):
        local.add_node(num_cpus=1, **OBJECT_STORE)
    local.wait_for_nodes()
    yield local
    local.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes: Any) -> Iterator[Cluster]:
    torch.set_num_threads(1)
    with connected(nodes.address) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny synthetic log: a Parquet file of many row groups, a CSV file and a gzipped one."""
    folder = tmp_path_factory.mktemp("log")
    generate_drift_log(num_users=900, num_items=150, seed=5).write_event_log(folder / "whole.parquet")
    table = pq.read_table(folder / "whole.parquet")
    (folder / "whole.parquet").unlink()
    third = len(table) // 3
    pq.write_table(table.slice(0, third), folder / "b.parquet", row_group_size=1_000)
    for name, part in (("a.csv", table.slice(third, third)), ("c.csv.gz", table.slice(2 * third))):
        with pa.output_stream(str(folder / name), compression="detect") as file:
            pa.csv.write_csv(part, file)
    return folder


@pytest.fixture(scope="module")
def checkpoint_path(log_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained T2Diff for the items of the log."""
    ids = read_interactions([log_folder]).item_ids
    path = tmp_path_factory.mktemp("checkpoints") / "t2diff"
    save_checkpoint(path, untrained_checkpoint(0, num_items=len(ids), item_ids=ids))
    return path


@pytest.fixture(scope="module")
def dat_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DAT of many items: its item embeddings are computed, not looked up."""
    path = tmp_path_factory.mktemp("checkpoints") / "dat"
    config = {"embedding_dim": 8, "max_length": 6, "feed_forward_hidden": 512, "num_layers": 2}
    model = build_model("dat", config, DAT_ITEMS).eval()
    few = untrained_checkpoint(0)
    save_checkpoint(
        path,
        replace(
            few,
            model=model,
            model_name="dat",
            model_config=config,
            item_ids=[f"i{number}" for number in range(DAT_ITEMS)],
        ),
    )
    return path


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def test_a_log_read_by_all_nodes_is_the_log_read_here(cluster: Cluster, log_folder: Path) -> None:
    here = read_interactions([log_folder])
    there = read_interactions_on(cluster, [log_folder], piece_rows=2_000)
    assert there.fingerprint == here.fingerprint
    assert (there.user_ids, there.item_ids, there.report) == (here.user_ids, here.item_ids, here.report)
    for name in ("offsets", "item_index", "timestamp"):
        ours, theirs = getattr(here, name), getattr(there, name)
        assert (ours.dtype, ours.tobytes()) == (theirs.dtype, theirs.tobytes())


def test_ranks_metrics_and_intervals_of_all_nodes_are_those_of_one(
    cluster: Cluster, log_folder: Path, checkpoint_path: Path
) -> None:
    model = load_checkpoint(checkpoint_path).model
    questions = leave_one_out(read_interactions([log_folder])).test
    here = rank_targets(model, questions)
    there = rank_targets_on(cluster, checkpoint_path, model, questions)
    assert there.tobytes() == here.tobytes()
    figures = [np.stack(list(question_metrics(ranks).values()), axis=1) for ranks in (here, there)]
    np.testing.assert_array_equal(*map(bootstrap_intervals, figures))
    assert sum(cluster.blocks_by_node.values()) > 1, "there were several blocks"


def test_a_bundle_built_with_ray_has_the_files_of_one_built_without(
    nodes: Any, checkpoint_path: Path, tmp_path: Path
) -> None:
    for store, options in (("here", []), ("there", ["--ray", nodes.address])):
        built = run("index_builder.cli", "build", checkpoint_path, "--out", tmp_path / store, *options)
        assert built.returncode == 0, built.stderr
    contents = []
    for store in ("here", "there"):
        (bundle,) = [path.parent for path in (tmp_path / store).glob("*/manifest.json")]
        contents.append({path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()})
        manifest = json.loads(contents[-1].pop("manifest.json"))
        contents[-1]["files"] = json.dumps(manifest["files"]).encode()
    assert "item_embeddings.safetensors" in contents[0]
    assert contents[0] == contents[1]


def test_evaluate_prints_the_same_with_ray(
    nodes: Any, log_folder: Path, checkpoint_path: Path, tmp_path: Path
):
    told = []
    for name, options in (("here", []), ("there", ["--ray", nodes.address])):
        out = tmp_path / f"{name}.json"
        done = run("model.cli", "evaluate", checkpoint_path, "--data", log_folder, "--json", out, *options)
        assert done.returncode == 0, done.stderr
        told.append((out.read_bytes(), done.stdout))
    assert told[0] == told[1]


def test_a_node_killed_in_the_middle_costs_time_and_nothing_else(
    nodes: Any, cluster: Cluster, dat_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add_node(num_cpus=1, **OBJECT_STORE)  # so that two are left beside the killed one
    model = load_checkpoint(dat_path).model
    killed: list[tuple[Any, int]] = []

    def kill_once(done: int) -> None:
        worked = [node for node in nodes.worker_nodes if node.node_id in cluster.blocks_by_node]
        if worked and not killed:
            kill_node(worked[0])
            killed.append((worked[0], done))

    with caplog.at_level(logging.WARNING):
        apart = embed_items_on(cluster, dat_path, model, on_block=kill_once)
    assert killed, "a node had finished a block"
    ((victim, done),) = killed
    nodes.worker_nodes.discard(victim)
    assert done < DAT_ITEMS, "and others were still to come"
    assert len(cluster.blocks_by_node) > 1
    assert victim.node_id not in cluster.nodes()
    assert "was lost" in caplog.text
    assert apart.tobytes() == embed_items(model).tobytes()


def kill_node(node: Any) -> None:
    """SIGKILL to the node's raylet and to the workers that it started."""
    (raylet,) = (entry.process.pid for entry in node.all_processes["raylet"])
    workers = psutil.Process(raylet).children(recursive=True)
    for pid in (raylet, *(worker.pid for worker in workers)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_file_that_only_this_machine_has_is_named(
    cluster: Cluster, log_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(log_folder)
    own = Path("/proc/self/cwd/b.parquet")  # another folder in each process
    assert own.is_file()
    with pytest.raises(BulkError, match=r"has no /proc/self/cwd/b.parquet: .*shared storage"):
        read_interactions_on(cluster, [own])


def test_where_no_cluster_answers_the_address_is_named(log_folder: Path) -> None:
    refused = run("model.cli", "inspect", "--data", log_folder, "--ray", "127.0.0.1:1")
    assert refused.returncode == 2
    assert "--ray 127.0.0.1:1: no cluster answers there" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_cluster_of_this_machine_alone_is_started_for_one_command(log_folder: Path, tmp_path: Path) -> None:
    here = run("model.cli", "inspect", "--data", log_folder)
    alone = run("model.cli", "inspect", "--data", log_folder, "--ray", "local")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout == here.stdout


def test_a_fault_of_a_worker_ends_the_job_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="could not finish"):
        list(cluster.run(Faulty, {}, [{"number": number} for number in range(4)]))


Faulty = ray_cluster._last_line
"""Called with no argument, it raises TypeError: a fault that no worker expects."""
