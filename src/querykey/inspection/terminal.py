"""An inspection as a terminal shows it: as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from querykey.inspection import tables
from querykey.inspection.inspect import Inspection
from querykey.inspection.tables import RANDOM, Column, Per, number_text


def print_tables(inspections: Sequence[Inspection], per: Per, console: Console) -> None:
    """The tables of each checkpoint, and of two a last one that has them side by side."""
    for inspection in inspections:
        console.print(Text(f"{inspection.place}  ({inspection.kind})", "bold"))
        _print_heads(inspection.heads, tables.SHOWN, per, console)
        if inspection.data is not None:
            console.print(Text("On the text", "bold"))
            _print_heads(inspection.heads, tables.ON_TEXT, per, console)
            data = inspection.data
            on = f"{data.measured_on:,} tokens of {data.name}, context {data.context}"
            below = f"; below, its perplexity on {on}" if data.perplexity else f" on {on}"
            console.print(
                Text(f"If heads shared weights, untrained: cosine of the output to what it is{below}", "bold")
            )
            _print(["replaced", *tables.FORECAST.values()], tables.forecast_words(inspection.data), console)
    if len(inspections) == 2:
        _print_side_by_side(inspections[0], inspections[1], console)


def _print_heads(heads: pd.DataFrame, columns: Sequence[Column], per: Per, console: Console) -> None:
    """The measures for which there is room; the last row is what random heads read."""
    if per == "head":
        chosen = tables.shown(heads, columns, (console.width - 17) // 11)
        words = ["layer", "head", "key\nhead", *(column.words for column in chosen)]
        return _print(words, tables.head_words(heads, chosen), console)
    summed = columns is tables.SHOWN
    chosen = tables.shown(heads, columns, (console.width - (15 if summed else 6)) // 12)
    words = ["layer", *(column.words for column in chosen), *["symmetry\nof sum"] * summed]
    return _print(words, tables.layer_words(heads, chosen, summed=summed), console)


def _print_side_by_side(first: Inspection, second: Inspection, console: Console) -> None:
    rows = [
        [row["measure"].replace("_", " "), *(number_text(row[name]) for name in row.index[1:])]
        for _, row in tables.side_by_side(first, second).iterrows()
    ]
    console.print(Text("Side by side: the median head of each, and how alike their heads rank", "bold"))
    _print(["measure", first.name, "random", second.name, "random", "correlation"], rows, console)


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="none")
    for number, words in enumerate(heads):
        left = number == 0 and not rows[0][0].isdecimal()
        drawn.add_column(words, justify="left" if left else "right", overflow="fold", no_wrap=number == 0)
    for cells in rows:
        drawn.add_row(*cells, style="dim" if cells[0] == RANDOM else "")
    console.print(drawn)
    console.print()
