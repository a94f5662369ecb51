"""An inspection as a terminal shows it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from querykey.inspection import tables
from querykey.inspection.columns import BEHAVIOUR, CHANGES, ON_WEIGHTS, Measure
from querykey.inspection.inspect import Inspection
from querykey.inspection.names import layer_names
from querykey.inspection.tables import Per
from querykey.report.table import Table


def print_tables(inspections: Sequence[Inspection], per: Per, console: Console) -> None:
    """The tables of each checkpoint, and of two a last one that has them side by side."""
    for inspection in inspections:
        name = f"{inspection.place}  ({inspection.kind})"
        found = [_heads(inspection, ON_WEIGHTS, per, name)]
        if inspection.base is not None:
            found.append(_heads(inspection, CHANGES, per, "What the adapter changes"))
        if inspection.data is not None:
            found.append(_heads(inspection, BEHAVIOUR, per, f"On the {inspection.data.reads}"))
            found.append(tables.forecast_table(inspection.data, layer_names(inspection.heads)))
        for table in found:
            console.print(table)
            console.print()
    if len(inspections) == 2:
        console.print(tables.side_table(*inspections))


def _heads(inspection: Inspection, measures: Sequence[Measure], per: Per, caption: str) -> Table:
    if per == "head":
        return tables.head_table(inspection.heads, measures, caption)
    return tables.layer_table(inspection.heads, measures, caption, summed=measures is ON_WEIGHTS)
