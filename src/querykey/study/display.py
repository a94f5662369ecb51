"""What is seen while a study runs: the means so far above the common progress bar."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from rich.table import Table

from querykey.report.progress import Progress
from querykey.study import compare


class Display:
    """Called with each step of a study, which it shows on a progress display; `trained` counts the cells."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._scores: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._diverged = self.trained = 0

    def __call__(self, step: compare.Progress) -> None:
        """Take note of a cell that has come."""
        self.trained += 1
        if step.outcome.metrics:
            self._scores[step.cell.task.name, str(step.cell.design)].append(step.outcome.metrics["test"])
        else:
            self._diverged += 1
        note = f"{self._diverged} diverged" if self._diverged else ""
        self._progress("cells", step.done, step.total, above=self._means(step), note=note)

    def _means(self, step: compare.Progress) -> Table:
        table = Table("design", *step.study.tasks, title="means so far (cells of this run)", box=None)
        for design in step.study.designs:
            table.add_row(design, *(self._mean(task, design) for task in step.study.tasks))
        return table

    def _mean(self, task: str, design: str) -> str:
        scores = self._scores[task, design]
        return f"{fmean(scores):.3f} ({len(scores)})" if scores else "·"
