"""Which heads are worth a look: those that differ most from the median head in one of their measures.

For each measure x the distance of a head is |x − median| / s, where s is 1.4826 times the median absolute deviation,
and at least a third of the standard deviation. A head's interest is its largest distance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from querykey.inspection.columns import ALONE, ENGLISH, KNOWN, ON_TEXT, ON_WEIGHTS, described, shown
from querykey.inspection.names import layer_names
from querykey.report.numbers import number
from querykey.report.table import Cell, Column, Table
from querykey.report.words import Words

MOST = 15  # heads that are listed
_BESIDE = ("symmetry", "tied_share", "effective_rank", "entropy", "self_mass", "cycle_longer")
_LEFT_OUT = ("symmetry_data", "symmetry_data_rotary")  # say much the same as the shares


class Interest(NamedTuple):
    """A head, the name of its layer, the measure in which it stands out, and by how much."""

    layer: str
    head: int
    measure: str
    value: float
    median: float
    distance: float


def ranked(heads: pd.DataFrame) -> list[Interest]:
    """All heads of self-attention, the most unusual first."""
    called = layer_names(heads)
    heads = heads[heads["attention"] == "self"]
    layers = heads["module"].map(called)
    names = [one.name for one in shown(heads, (*ON_WEIGHTS, *ON_TEXT, *ALONE)) if one.name not in _LEFT_OUT]
    values = heads[names].to_numpy(dtype=float)
    median = np.nanmedian(values, axis=0)
    away = np.abs(values - median)
    scale = np.maximum(1.4826 * np.nanmedian(away, axis=0), np.nanstd(values, axis=0) / 3)
    distance = np.nan_to_num(away / np.where(scale > 0, scale, np.inf))
    which = distance.argmax(1)
    found = [
        Interest(layer, int(head), names[m], float(values[row, m]), float(median[m]), float(distance[row, m]))
        for row, (layer, head, m) in enumerate(zip(layers, heads["head"], which, strict=True))
    ]
    return sorted(found, key=lambda one: -one.distance)


def ranking_table(heads: pd.DataFrame, say: Words = ENGLISH) -> Table:
    """The first heads with what stands out in each, beside the measures that one wants to see of every head."""
    beside = [KNOWN[name] for name in _BESIDE if name in heads and heads[name].notna().any()]
    called = layer_names(heads)
    at = {(called[row["module"]], row["head"]): row for row in heads.to_dict("records")}
    rows: list[list[Cell | str]] = []
    for one in ranked(heads)[:MOST]:
        digits = KNOWN[one.measure].digits
        rows.append(
            [
                say("called", layer=one.layer, head=one.head),
                described(one.measure, say)[0],
                Cell(number(one.value, digits), value=one.value),
                Cell(number(one.median, digits), value=one.median),
                *(number(at[one.layer, one.head][column.name], column.digits) for column in beside),
            ]
        )
    columns = [Column(say(f"column.{name}"), "left") for name in ("head", "stands-out")]
    titles = [say("column.value"), say("column.median"), *(described(one.name, say)[0] for one in beside)]
    return Table([*columns, *map(Column, titles)], rows, legend=say("legend"))
