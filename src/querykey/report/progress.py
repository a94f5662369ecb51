"""One progress display for everything that takes longer than a moment.

    with Progress(Console(stderr=True)) as progress:
        for done in range(1, 13):
            ...
            progress("layers", done, 12)

On a terminal it is a bar with the time left, which is gone at the end. Elsewhere it is a line for each new kind of
step, for its end, and for each tenth in between that takes a second or more.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from querykey.report.numbers import duration

Watch = Callable[[str, int, int], object]
"""What a long job calls after each step: what the steps are, how many are done, and of how many."""


class Progress:
    """Shows how far a job is; call it after each step.

    Args:
        console: where; usually standard error.
        opening: shown until the first step.
    """

    def __init__(self, console: Console, opening: str = "opening") -> None:
        self.console = console
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console,
            speed_estimate_period=86400,  # steps differ in size, so the last ones do not tell how long the rest takes
        )  # fmt: skip
        self._task = self._bar.add_task(opening, total=None)
        self._live = Live(self._bar, console=console, refresh_per_second=4, transient=True)
        self._last = ("", 0, 0)
        self._told = (0, 0.0)  # the step of the last line and its time

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def __call__(
        self, what: str, done: int, total: int, *, above: RenderableType | None = None, note: str = ""
    ) -> None:
        """Take note of a step.

        Args:
            what: the kind of step.
            done, total: how many steps of how many. A new total, or fewer done than before, restarts the clock.
            above: what a terminal shows above the bar.
            note: a few words for the line elsewhere.
        """
        before, at, of = self._last
        if total != of or done < at:
            self._bar.reset(self._task, total=total)
            self._told = (0, self._bar.get_time())
        self._bar.update(self._task, description=what, completed=done, total=total)
        if self.console.is_terminal:
            self._live.update(self._bar if above is None else Group(above, self._bar))
        elif what != before or done == total or self._due(done, total):
            self.console.print(self._line(what, done, total, note), soft_wrap=True, highlight=False, markup=False)
            self._told = (done, self._bar.get_time())
        self._last = (what, done, total)

    def _due(self, done: int, total: int) -> bool:
        """Whether another tenth and a second have passed since the last line."""
        told, at = self._told
        return 10 * done // total > 10 * told // total and self._bar.get_time() - at >= 1

    def _line(self, what: str, done: int, total: int, note: str) -> str:
        seconds = self._bar.tasks[0].time_remaining
        left = "" if seconds is None or done == total else f", about {duration(seconds)} left"
        return f"{what}: {done} of {total}{left}{f', {note}' if note else ''}"
