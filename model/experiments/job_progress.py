"""Progress of many jobs at once: one bar for all with the time left, one line for each that runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from model.experiments.time_left import TimeLeft


class JobProgress:
    """A context whose `report` and `ended` fit `job_pool.run_jobs`.

    kinds: job -> kind, jobs of one kind lasting about equally long
    """

    def __init__(self, kinds: Mapping[str, str], *, num_processes: int, console: Console) -> None:
        self.left = TimeLeft(kinds)
        self.num_processes = num_processes
        self.shares = dict.fromkeys(kinds, 0.0)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
        )
        self.all = self.bar.add_task("all", total=max(len(kinds), 1), words="")
        self.lines: dict[str, TaskID] = {}

    def __enter__(self) -> JobProgress:
        if self.shares:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def report(self, job: str, share: float, words: str) -> None:
        """A job says how far it is."""
        if job not in self.lines:
            self.lines[job] = self.bar.add_task(job, total=1.0, words=words)
        self.bar.update(self.lines[job], completed=share, words=words)
        self._heard(job, share)

    def ended(self, job: str, why: str | None) -> None:
        """A job is done, or failed; a line that stays says so."""
        if job in self.lines:
            self.bar.remove_task(self.lines.pop(job))
        self._heard(job, 1.0)
        last = "" if why is None else why.strip().splitlines()[-1]
        self.bar.console.print(
            f"{job}: done; {self._words()}" if why is None else f"{job}: FAILED, {last}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _heard(self, job: str, share: float) -> None:
        self.shares[job] = share
        self.left.heard(job, share, time.monotonic())
        self.bar.update(self.all, completed=sum(self.shares.values()), words=self._words())

    def _words(self) -> str:
        done = sum(share >= 1 for share in self.shares.values())
        seconds = self.left.seconds(self.num_processes)
        words = f"{done} of {len(self.shares)}"
        return words if seconds is None else f"{words}, {duration(seconds)} left"


def duration(seconds: float) -> str:
    """3:07:05, or 7:05 under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
