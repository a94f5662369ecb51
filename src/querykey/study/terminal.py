"""The report of a study as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from querykey.study.answer import headline, on_designs
from querykey.study.result import Result
from querykey.study.tables import (
    Choice,
    ClaimRow,
    Cost,
    Row,
    choice_rows,
    claim_rows,
    cost_rows,
    cost_title,
    notes,
    task_rows,
    task_title,
)

ROOMY = 120  # columns from which a comparison has room on one line


class Tables:
    """A result for rich, as wide as the terminal has room."""

    def __init__(self, result: Result) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Tables, then notes, and last what one wants to see first where lines scroll: the answer."""
        roomy = options.max_width >= ROOMY
        for task in self.result.study.tasks:
            yield from _titled(task_title(self.result, task), _task_table(task_rows(self.result, task), roomy))
            choices = choice_rows(self.result, task)
            if choices:
                yield from _titled(f"{task}: positions whose highest weight lies right", _choice_table(choices))
        title = cost_title(self.result)
        if title is not None:
            yield from _titled(title, _cost_table(cost_rows(self.result)))
        for note in notes(self.result):
            yield Text(f"Note: {note}", "yellow")
            yield ""
        yield from self._claims()
        yield from self._answer()

    def _claims(self) -> Iterator[RenderableType]:
        for claim in claim_rows(self.result):
            yield Text.assemble((f"{claim.name} ", "bold"), claim.says)
            yield Text(f"   {claim.verdict}", _STYLES.get(claim.kind, ""))
            yield _evidence_table(claim)
            yield ""

    def _answer(self) -> Iterator[RenderableType]:
        result = self.result
        if result.study.question:
            yield Text(result.study.question, "bold")
        for line in headline(result.study, result.comparisons, result.missing):
            yield Text(line)
        points = Table.grid(padding=(0, 1, 0, 0))
        for line in on_designs(result.study, result.comparisons, result.improvement):
            points.add_row("-", Text(line))
        yield points


def _titled(title: str, table: Table) -> Iterator[Text | Table | str]:
    yield Text(title, "bold")
    yield table
    yield ""


def _task_table(rows: list[Row], roomy: bool) -> Table:
    table = _empty_table()
    heads = ("design", "mean ± sd", "difference", "95 % interval", "p (Holm)", "p flip", "verdict")
    if roomy:
        for head in heads:
            table.add_column(head, overflow="fold", justify="left" if head in ("design", "verdict") else "right")
        for row in rows:
            table.add_row(*row[:6], Text(row.verdict, _STYLES.get(row.kind, "")))
        return table
    table.add_column("design", overflow="fold")
    for head in ("mean\n± sd", "difference\n95 % interval", "p (Holm)\np flip"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for row in rows:
        pairs = (row.score.replace(" ±", "\n±"), f"{row.difference}\n{row.interval}", f"{row.p_t}\n{row.p_flip}")
        table.add_row(row.design, *map(str.strip, pairs), Text(row.verdict, _STYLES.get(row.kind, "")))
    return table


_STYLES = {"better": "green", "worse": "red", "holds": "green", "fails": "red", "open": "dim"}


def _choice_table(rows: list[Choice]) -> Table:
    table = _empty_table()
    table.add_column("design", overflow="fold")
    table.add_column("mean ± sd", justify="right", no_wrap=True)
    table.add_column("at most", justify="right", no_wrap=True)
    table.add_column("because", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _evidence_table(claim: ClaimRow) -> Table:
    table = _empty_table()
    for head in ("task", "design", "predicted", "found"):
        table.add_column(head, no_wrap=True)
    for head in ("difference", "seeds\nturn it"):
        table.add_column(head, justify="right")
    for one in claim.evidence:
        table.add_row(*one[:4], one.difference.replace(" [", "\n["), one.reversal)
    return table


def _cost_table(rows: list[Cost]) -> Table:
    table = _empty_table()
    table.add_column("design", overflow="fold")
    for head in ("parameters", "FLOPs", "cache bytes/token"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.design, *(f"{amount.number}  {amount.times:>5}" for amount in row[1:]))
    return table


def _empty_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="none")
