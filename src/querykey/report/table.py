"""One table value, rendered for a terminal, for Markdown and for a page.

    table = Table(
        [Column("design", "left", wrap=True), Column("difference", detail="95 % interval", about="to the baseline")],
        [[Cell("q=k,v", style="code"), Cell("−0.60", "[−0.61, −0.59]", "bad", value=-0.6)]],
        caption="cycle: accuracy, 6 seeds",
    )
    Console().print(table)      # rich: as wide as the terminal allows
    table.markdown()            # GitHub's tables
    "{{ table }}"               # in a Jinja template: HTML, sortable by the script of `report.page`

A cell has a main text and a `detail` such as an interval. The detail stands beside the text where the width allows it,
and below it elsewhere. A row may also hold plain strings. CSV and JSON are written from the raw records, not from
tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import fill
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

Style = Literal["", "good", "bad", "muted", "code"]

_TERMINAL = {"good": "green", "bad": "red", "muted": "dim"}
_GAP = 2  # blanks between two columns of a terminal
_HEAD = 14  # characters from which a title is broken
_WRAPPED = 24  # characters that a column which may wrap needs at least


@dataclass(frozen=True)
class Column:
    """A column.

    Args:
        title: the text above it; `detail` is the title of the cells' details.
        align: "right" for numbers, "left" for words.
        about: a short explanation, printed above the table.
        wrap: whether its text may be broken over lines.
        rank: a narrow terminal leaves out the column with the highest rank; columns of rank 0 stay.
    """

    title: str
    align: Literal["left", "right"] = "right"
    detail: str = ""
    about: str = ""
    wrap: bool = False
    rank: int = 0


@dataclass(frozen=True)
class Cell:
    """A cell; `value` is the number by which a page sorts it, where the text is no plain number."""

    text: str
    detail: str = ""
    style: Style = ""
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Columns and rows, with a caption above and notes below; `legend` is the title of what the columns mean.

    Raises:
        ValueError: if a row has more or fewer cells than there are columns.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    notes: Sequence[str] = ()
    legend: str = "What the columns mean"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row has {len(row)} cells, but the table {len(self.columns)} columns: {row}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Caption, explanations of the columns, the table and the notes."""
        if self.caption:
            yield Text(self.caption, "bold")
        for title, about in self._explained():
            yield Text(f"{title}: {about}", "dim")
        yield self._drawn(options.max_width)
        for note in self.notes:
            yield Text(note, "dim")

    def __html__(self) -> str:
        """The table as HTML, within an element that scrolls; Jinja takes it without escaping."""
        label = escape(self.caption or self.columns[0].title)
        parts = [f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>']
        parts += [f"<caption>{escape(self.caption)}</caption>"] if self.caption else []
        parts += [f"<thead><tr>{''.join(map(_head, self.columns))}</tr></thead>", "<tbody>"]
        parts += [f"<tr>{''.join(map(_data, self.columns, row, _places(row)))}</tr>" for row in self.rows]
        parts += ["</tbody>", "</table></div>"]
        if explained := self._explained():
            meanings = "".join(f"<dt>{escape(title)}</dt><dd>{escape(about)}</dd>" for title, about in explained)
            summary = f"<summary>{escape(self.legend)}</summary>"
            parts.append(f'<details class="columns">{summary}<dl>{meanings}</dl></details>')
        parts += [f'<p class="muted">{escape(note)}</p>' for note in self.notes]
        return "\n".join(parts)

    def markdown(self) -> str:
        """The table in GitHub's Markdown, with a line break at the end."""
        lines = [f"{self.caption}\n"] if self.caption else []
        lines.append(_line(_joined(column.title, column.detail) for column in self.columns))
        lines.append(_line("---" if column.align == "left" else "--:" for column in self.columns))
        lines += [_line(map(_marked, map(_cell, row))) for row in self.rows]
        explained = [f"- **{title}**: {about}" for title, about in self._explained()]
        for part in (explained, [f"- {note}" for note in self.notes]):
            lines += ["", *part] if part else []
        return "\n".join(lines) + "\n"

    def _explained(self) -> list[tuple[str, str]]:
        return [(_joined(column.title, column.detail), column.about) for column in self.columns if column.about]

    def _drawn(self, width: int) -> RichTable:
        """All columns with details beside the texts; else below them; else without the columns of highest rank."""
        chosen, beside = [*range(len(self.columns))], True
        while self._width(chosen, beside) > width:
            ranks = {n: self.columns[n].rank for n in chosen}
            if not beside and not any(ranks.values()):
                break
            if not beside:
                chosen.remove(max(chosen, key=lambda n: ranks[n]))
            beside = False
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        for n in chosen:
            column = self.columns[n]
            table.add_column(
                Text(_title(column, beside)), justify=column.align, no_wrap=not column.wrap, overflow="fold"
            )
        widths = [self._detail_width(n) for n in range(len(self.columns))]
        for row in self.rows:
            table.add_row(*(_printed(_cell(row[n]), beside, widths[n]) for n in chosen))
        return table

    def _width(self, chosen: Sequence[int], beside: bool) -> int:
        """Characters that these columns need."""
        return sum(self._column_width(n, beside) for n in chosen) + _GAP * (len(chosen) - 1)

    def _column_width(self, n: int, beside: bool) -> int:
        column = self.columns[n]
        cells = [_cell(row[n]) for row in self.rows]
        texts = max((cell_len(cell.text) for cell in cells), default=0)
        details = self._detail_width(n)
        longest = texts + details + _GAP * bool(details) if beside else max(texts, details)
        head = max(map(cell_len, _title(column, beside).split("\n")))
        return max(head, min(longest, _WRAPPED) if column.wrap else longest)

    def _detail_width(self, n: int) -> int:
        return max((cell_len(_cell(row[n]).detail) for row in self.rows), default=0)


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _joined(text: str, detail: str, between: str = " ") -> str:
    return f"{text}{between}{detail}" if detail else text


def _title(column: Column, beside: bool) -> str:
    """The head of a column for a terminal, over several lines where it is long."""
    words = fill(column.title, _HEAD, break_long_words=False)
    return _joined(words, column.detail, "  " if beside else "\n")


def _printed(cell: Cell, beside: bool, width: int) -> Text:
    """For rich; details that stand beside are aligned among themselves."""
    between = "  " if beside else "\n"
    detail = (
        f"{between}{cell.detail.rjust(width) if beside else cell.detail}" if cell.detail or (width and beside) else ""
    )
    return Text.assemble((cell.text, _TERMINAL.get(cell.style, "")), (detail, "dim"))


def _head(column: Column) -> str:
    kind = ' class="left"' if column.align == "left" else ""
    about = f' title="{escape(column.about)}"' if column.about else ""
    return f'<th scope="col"{kind}{about}>{_inner(column.title, column.detail)}</th>'


def _data(column: Column, cell: Cell | str, first: bool) -> str:
    cell = _cell(cell)
    classes = (
        ["left"] * (column.align == "left") + ["wrap"] * column.wrap + [cell.style] * (cell.style not in ("", "code"))
    )
    kind = f' class="{" ".join(classes)}"' if classes else ""
    value = "" if cell.value is None else f' data-sort="{cell.value!r}"'
    inner = _inner(cell.text, cell.detail)
    inner = f"<code>{inner}</code>" if cell.style == "code" else inner
    return f'<th scope="row"{kind}{value}>{inner}</th>' if first else f"<td{kind}{value}>{inner}</td>"


def _places(row: Sequence[Cell | str]) -> Iterator[bool]:
    """Whether a cell is the first of its row."""
    return (n == 0 for n in range(len(row)))


def _inner(text: str, detail: str) -> str:
    return escape(text) + (f" <small>{escape(detail)}</small>" if detail else "")


def _line(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(cell: Cell) -> str:
    text = _joined(cell.text, cell.detail).replace("\n", " ").replace("|", r"\|")
    return f"`{text}`" if cell.style == "code" else text
