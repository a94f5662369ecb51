"""What is seen while a study runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from querykey.study import compare


class Display:
    """Shows cells done, time left, and the means so far; called with each step of a study.

    On a terminal it redraws itself; elsewhere it prints a line each time another tenth is done.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._scores: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._diverged = 0
        self._bar = Progress(
            TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=console,
            speed_estimate_period=86400,  # cells of one seed differ in size, so the last ones do not tell the rest
        )  # fmt: skip
        self._task = self._bar.add_task("cells", total=None)
        self._live = Live(self._bar, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def __call__(self, step: compare.Progress) -> None:
        """Take note of a cell that has come."""
        if step.outcome.metrics:
            self._scores[step.cell.task.name, str(step.cell.design)].append(step.outcome.metrics["test"])
        else:
            self._diverged += 1
        self._bar.update(self._task, completed=step.done, total=step.total)
        if self.console.is_terminal:
            self._live.update(Group(self._table(step), self._bar))
        elif step.done == step.total or 10 * step.done // step.total > 10 * (step.done - 1) // step.total:
            self.console.print(self._line(step), soft_wrap=True)

    def _table(self, step: compare.Progress) -> Table:
        table = Table("design", *step.study.tasks, title="means so far (cells of this run)", box=None)
        for design in step.study.designs:
            table.add_row(design, *(self._mean(task, design) for task in step.study.tasks))
        return table

    def _mean(self, task: str, design: str) -> str:
        scores = self._scores[task, design]
        return f"{fmean(scores):.3f} ({len(scores)})" if scores else "·"

    def _line(self, step: compare.Progress) -> str:
        seconds = self._bar.tasks[0].time_remaining
        left = "" if seconds is None or step.done == step.total else f", about {seconds:.0f} s left"
        diverged = f", {self._diverged} diverged" if self._diverged else ""
        return f"{step.done} of {step.total} cells{left}{diverged}"
