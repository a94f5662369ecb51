"""An inspection as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from querykey.inspection import tables
from querykey.inspection.columns import BEHAVIOUR, CHANGES, ENGLISH, ON_WEIGHTS, Measure
from querykey.inspection.inspect import Inspection
from querykey.inspection.names import layer_names
from querykey.inspection.tables import Per
from querykey.report.table import Table
from querykey.report.words import Words


def print_tables(inspections: Sequence[Inspection], per: Per, console: Console, say: Words = ENGLISH) -> None:
    """The tables of each checkpoint, and of two a last one that has them side by side."""
    for inspection in inspections:
        name = f"{inspection.place}  ({inspection.kind})"
        found = [_heads(inspection, ON_WEIGHTS, per, name, say)]
        if inspection.base is not None:
            found.append(_heads(inspection, CHANGES, per, say("caption.adapter"), say))
        if inspection.data is not None:
            found.append(_heads(inspection, BEHAVIOUR, per, say(f"on.{inspection.data.reads}"), say))
            found.append(tables.forecast_table(inspection.data, layer_names(inspection.heads), say))
        for table in found:
            console.print(table)
            console.print()
    if len(inspections) == 2:
        console.print(tables.side_table(inspections[0], inspections[1], say))


def _heads(inspection: Inspection, measures: Sequence[Measure], per: Per, caption: str, say: Words) -> Table:
    if per == "head":
        return tables.head_table(inspection.heads, measures, caption, say)
    return tables.layer_table(inspection.heads, measures, caption, say, summed=measures is ON_WEIGHTS)
