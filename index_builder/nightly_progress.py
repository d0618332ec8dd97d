"""How a night's run looks on the console: a bar that moves, and a line a stage that stays in a log."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from model.training import Progress as TrainingProgress

STAGES = ("reading", "training", "building", "asking the gates", "publishing")


class NightProgress:
    """A `nightly.Watcher` on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<64}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True, compact=True),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=None)
        self._stage = ""

    def __enter__(self) -> NightProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        self._stage = f"{STAGES.index(name) + 1}/{len(STAGES)} {name}"
        self.note(self._stage)
        self._bar.reset(self._task, total=total, description=self._stage)

    def step(self, name: str) -> None:
        self._bar.update(self._task, advance=1, description=f"{self._stage}: {name}")

    def trained(self, progress: TrainingProgress) -> None:
        recall = "-" if progress.recall_at_20 is None else f"{progress.recall_at_20:.4f}"
        told = f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.3f}, recall@20 {recall}"
        if progress.epoch_ended:
            self.note(f"  {told}")
        self._bar.update(
            self._task,
            total=progress.num_updates,
            completed=progress.update,
            description=f"{self._stage}: {told}",
        )

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
