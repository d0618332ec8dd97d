"""The processes that train one model together, as `torchrun` starts them; a process alone is a run of one.

`torchrun` tells each process in its environment which one it is. They meet over gloo on CPUs and over NCCL
on GPUs, one GPU a process. All of them compute; the first one alone writes, prints and evaluates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

Value = TypeVar("Value")

LONGEST_WAIT = timedelta(minutes=30)
"""After it a process that does not answer is given up; one that has ended is noticed at once."""

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LostRankError(RuntimeError):
    """Another process of the run ended or stopped answering, so that this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """One process among `count`.

    rank: its number from 0   device: where it computes
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process writes, prints and evaluates for all."""
        return self.rank == 0

    def rows(self, size: int) -> slice:
        """Which of `size` rows are this process's; any two have as many, or one more."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def add_up(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of every process's `value`, which is left as it is.   any shape -> the same"""
        return value if self.count == 1 else self.add_up_in_place(value.clone())

    def add_up_in_place(self, value: torch.Tensor) -> torch.Tensor:
        """Make `value` the sum of every process's.   any shape -> the same tensor"""
        if self.count > 1:
            distributed.all_reduce(value)
        return value

    def unite(self, flags: torch.Tensor) -> None:
        """Set in place what any process has set.   flags: bool, any shape"""
        if self.count > 1:
            flags.copy_(self.add_up(flags.int()) > 0)

    def from_first(self, compute: Callable[[], Value]) -> Value:
        """What the first process computes, which the others do not, told to all.

        compute: gives numbers, strings, and lists and dictionaries of them
        """
        if self.count == 1:
            return compute()
        text = json.dumps(compute()).encode() if self.is_first else b""
        size = int(self.add_up(torch.tensor(len(text), device=self.device)))
        told = torch.zeros(size, dtype=torch.uint8)
        if self.is_first:
            told.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        told = told.to(self.device)
        distributed.broadcast(told, 0)
        value: Value = json.loads(bytes(told.tolist()))
        return value

    def wait_for_all(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            self.add_up(torch.zeros((), device=self.device)).item()


ALONE = Ranks()


@contextmanager
def join_ranks(environment: Mapping[str, str], device: str) -> Iterator[Ranks]:
    """Meet the other processes that `environment` speaks of; without any, at once.

    device: cpu, or cuda for the GPU of the process's number on its host
    Raises ValueError for an environment that is not torchrun's or has no GPU for this process, and
    LostRankError in place of what a collective raises when another process has ended.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    missing = [name for name in _VARIABLES if name not in environment]
    if missing:
        raise ValueError(
            f"environment: WORLD_SIZE is {environment['WORLD_SIZE']} but {', '.join(missing)} is not set; "
            "start with torchrun, or unset WORLD_SIZE to train in one process"
        )
    rank, count = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    if device == "cuda":
        _take_gpu(_number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else rank)
    try:
        _meet("nccl" if device == "cuda" else "gloo", environment)
        yield Ranks(rank, count, device)
    except RuntimeError as error:
        if not _is_of_a_collective(error):
            raise
        raise LostRankError(
            f"another process of this run ended or stopped answering ({str(error).splitlines()[0][:200]}); "
            "its own message says why, and --resume goes on from the last saved state"
        ) from error
    distributed.destroy_process_group()


def name_of_rank(environment: Mapping[str, str]) -> str:
    """What a message of this process begins with: "rank 1: ", or nothing when it is alone."""
    alone = "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1"
    return "" if alone else f"rank {environment['RANK']}: "


def _number(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise ValueError(f"environment: {name} must be a number, got {environment[name]!r}; torchrun sets it")
    return int(environment[name])


def _meet(backend: str, environment: Mapping[str, str]) -> None:
    """`torchrun` keeps its meeting place when it starts all again; what the dead left there would mislead."""
    store, rank, count = next(rendezvous("env://", timeout=LONGEST_WAIT))
    attempt = distributed.PrefixStore(f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=count, timeout=LONGEST_WAIT)


def _take_gpu(local_rank: int) -> None:
    """Make it what `cuda` means in this process."""
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ValueError(
            f"LOCAL_RANK is {local_rank} but this host has {num_gpus} GPU(s); give --nproc-per-node no more "
            "than that, or --device cpu"
        )
    torch.cuda.set_device(local_rank)


def _is_of_a_collective(error: RuntimeError) -> bool:
    """NCCL and the meeting place have errors of their own; gloo names itself in a plain RuntimeError."""
    own = (
        distributed.DistError,
        distributed.DistBackendError,
        distributed.DistNetworkError,
        distributed.DistStoreError,
    )
    return isinstance(error, own) or "gloo" in str(error)
