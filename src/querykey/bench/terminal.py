"""A finished benchmark as a terminal shows it, and how far one is."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from querykey.bench import bench
from querykey.bench.bench import Bench, Row
from querykey.bench.report import (
    compared_note,
    interval,
    legend,
    milliseconds,
    rate_unit,
    size,
    tables,
    theory_cell,
    title,
)

ROOMY = 120  # columns from which an interval has room beside its median


class Tables:
    """A result for rich: one table for each shape and pass, then what the columns mean."""

    def __init__(self, result: Bench) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """As wide as the terminal has room."""
        for rows in tables(self.result):
            yield Text(title(rows[0], self.result.setting), "bold")
            yield _table(rows, options.max_width >= ROOMY)
            if note := compared_note(rows):
                yield Text(note, "dim")
            yield ""
        meanings = Table.grid(padding=(0, 2, 0, 0))
        for word, meaning in legend(self.result).items():
            meanings.add_row(Text(word, "dim"), Text(meaning, "dim"))
        yield meanings


class Display:
    """How far a benchmark is: a bar on a terminal, a line for each shape and pass elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("making ready", total=None)
        self._last = ""

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, step: bench.Progress) -> None:
        """Take note of a round that is done."""
        self._bar.update(self._task, description=step.what, completed=step.done, total=step.total)
        if not self.console.is_terminal and step.what != self._last:
            self.console.print(f"{100 * step.done // step.total:3} %  {step.what}", soft_wrap=True, highlight=False)
        self._last = step.what


def _table(rows: list[Row], roomy: bool) -> Table:
    """With an interval beside or below its median, and so for other pairs of columns."""
    between = " " if roomy else "\n"
    decoding = rows[0].cache_bytes is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="none")
    table.add_column("layer", overflow="fold", min_width=min(15, max(len(row.name) for row in rows)))
    first = rows[0].name if len(rows[0].name) < 8 else "first"  # a head may not take the room of the numbers
    for head in ("time (ms)", "÷ floor", f"÷ {first}", "theory"):
        table.add_column(head, justify="right", no_wrap=True)
    last = ("peak", "kernel", rate_unit(rows[0]), *["B/token"] * decoding)
    for heads in [(head,) for head in last] if roomy else (last[:2], last[2:]):
        table.add_column("\n".join(heads), justify="left" if heads == ("kernel",) else "right", no_wrap=True)
    for number, row in enumerate(rows):
        pairs = (milliseconds(row.seconds), interval(row.to_floor), interval(row.to_baseline))
        cells = [Text.assemble(middle, between, (around, "dim")) for middle, around in pairs]
        ends = [size(row.peak_bytes), row.backend, f"{row.rate / 1e9:,.3g}"]
        ends += ["" if row.cache_bytes is None else f"{row.cache_bytes:,}"] * decoding
        more = ends if roomy else ["\n".join(ends[:2]), "\n".join(ends[2:])]
        others_follow = number + 1 < len(rows) and rows[number + 1].peer > row.peer
        table.add_row(row.name, *cells, theory_cell(row), *more, end_section=others_follow)
    return table
