"""The numbers of an inspection as tables: per head or per layer, for people and for programs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from querykey.inspection.columns import ENGLISH, Measure, counted, described, shown
from querykey.inspection.data import Data
from querykey.inspection.forecast import REPLACEMENTS
from querykey.inspection.inspect import Inspection
from querykey.inspection.names import layer_names
from querykey.report.numbers import number, perplexity
from querykey.report.table import Cell, Column, Table
from querykey.report.words import Words

Per = Literal["layer", "head"]
KEYS = ("layer", "head", "kv_head")
FACTS = ("attention", "dim", "head_dim", "scaling", "positions", "qk_norm", "uses", "module")
Row = list[Cell | str]


def table(inspections: Sequence[Inspection], per: Per = "head") -> pd.DataFrame:
    """All heads, or all layers, of one checkpoint; of several with the column ``checkpoint`` before all others."""
    frames = [one.heads if per == "head" else per_layer(one.heads) for one in inspections]
    if len(frames) == 1:
        return frames[0]
    named = [frame.assign(checkpoint=one.place) for one, frame in zip(inspections, frames, strict=True)]
    whole = pd.concat(named, ignore_index=True)
    return whole[["checkpoint", *whole.columns.drop("checkpoint")]]


def per_layer(heads: pd.DataFrame) -> pd.DataFrame:
    """One row per layer: of every measure the median head, and the lowest and the highest as `_min` and `_max`.

    Nulls and facts are those of the layer, and ``layer_symmetry`` is the symmetry of the sum over its heads.
    """
    rows = []
    for _, mine in heads.groupby("module", sort=False):
        row: dict[str, Any] = {"layer": mine["layer"].iloc[0], "heads": len(mine)}
        for name in mine.columns.drop(list(KEYS), errors="ignore"):
            values = mine[name]
            if not spreads(str(name)):
                row[str(name)] = values.iloc[0]
                continue
            row |= {str(name): values.median(), f"{name}_min": values.min(), f"{name}_max": values.max()}
        rows.append(row)
    return pd.DataFrame(rows)


def spreads(column: str) -> bool:
    """Whether it differs among the heads of a layer."""
    return column not in FACTS and not column.startswith("layer_") and not column.endswith(("_null", "_null_sd"))


def side_by_side(first: Inspection, second: Inspection) -> pd.DataFrame:
    """One row per measure: the median head of either checkpoint and of random ones.

    Where both have the same layers and heads, ``correlation`` is that of the measure over the heads, rank by rank.
    """
    a, b = first.heads, second.heads
    paired = a[["layer", "head"]].equals(b[["layer", "head"]])
    rows = []
    for name in a.columns.intersection(b.columns, sort=False):
        null = f"{name}_null"
        empty = a[name].isna().all() and b[name].isna().all()
        if null not in a or null not in b or name.startswith("layer_") or empty:
            continue
        row = {"measure": name, "first": a[name].median(), "first_null": a[null].median()}
        row |= {"second": b[name].median(), "second_null": b[null].median()}
        steady = paired and min(a[name].nunique(), b[name].nunique()) > 1
        rows.append(row | {"correlation": a[name].rank().corr(b[name].rank()) if steady else math.nan})
    return pd.DataFrame(rows)


def as_csv(frame: pd.DataFrame) -> str:
    """Every digit; what is not there is empty."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


def as_json(frame: pd.DataFrame) -> str:
    """A list of one object per row, one per line; what is not there is null."""
    rows = [{name: _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]
    return "[\n" + ",\n".join(json.dumps(row, allow_nan=False, ensure_ascii=False) for row in rows) + "\n]\n"


def as_parquet(frame: pd.DataFrame) -> bytes:
    """The bytes of a Parquet file."""
    written = io.BytesIO()
    frame.to_parquet(written, index=False)
    return written.getvalue()


def layer_table(
    heads: pd.DataFrame, measures: Sequence[Measure], caption: str, say: Words = ENGLISH, *, summed: bool = False
) -> Table:
    """A row per layer, with the median head and the range over its heads; then random heads.

    With `summed` the last column is the symmetry of the sum over the layer's heads.
    """
    there, names = shown(heads, measures), layer_names(heads)
    rows: list[Row] = [
        [names[row["module"]], *(_spread(row, one) for one in there), *[number(row["layer_symmetry"])] * summed]
        for _, row in per_layer(heads).iterrows()
    ]
    nulls = [(_random(kind, there, say), _muted(kind["layer_symmetry_null"].iloc[0])) for kind in _kinds(heads)]
    rows += [[*cells, *[last] * summed] for cells, last in nulls]
    columns = [Column(say("column.layer")), *_columns(there, say), *[Column(say("column.sum"))] * summed]
    return Table(columns, rows, caption, legend=say("legend"))


def head_table(heads: pd.DataFrame, measures: Sequence[Measure], caption: str, say: Words = ENGLISH) -> Table:
    """A row per head: layer, head, key head and the measures; then random heads."""
    there, names = shown(heads, measures), layer_names(heads)
    rows: list[Row] = [
        [
            names[row["module"]],
            *(str(row[key]) for key in KEYS[1:]),
            *(number(row[one.name], one.digits) for one in there),
        ]
        for _, row in heads.iterrows()
    ]
    for kind in _kinds(heads):
        name, *nulls = _random(kind, there, say)
        rows.append([name, "", "", *nulls])
    places = [Column(say(f"column.{name}")) for name in ("layer", "head", "key-head")]
    columns = [*places, *_columns(there, say)]
    return Table(columns, rows, caption, legend=say("legend"))


def forecast_table(data: Data, names: Mapping[str, str], say: Words = ENGLISH) -> Table:
    """A row per thing that is replaced: the cosine of the output for each replacement, and the perplexity under it.

    `names` are those of the layers, by module.
    """
    rows: list[Row] = []
    for (scope, module, head), mine in data.forecast.groupby(["scope", "module", "head"], sort=False):
        effects = {row["replacement"]: _effect(row) for _, row in mine.iterrows()}
        place = {"layer": names.get(str(module)), "head": head}
        known = {"head": "called", "layer": "called.layer"}
        what = say(known.get(str(scope), f"scope.{scope}"), **place)
        rows.append([what, *(effects[""] if scope == "none" else effects[kind] for kind in REPLACEMENTS)])
    below = say("caption.perplexity") if data.perplexity else ""
    read = {"measured": f"{data.measured_on:,}", "images": counted(say, data.images[1], "image")}
    on = say(f"caption.{data.reads}", name=data.name, context=data.context, **read)
    titles = [say("column.replaced"), *(say(f"replacement.{kind}") for kind in REPLACEMENTS)]
    columns = [Column(title, "right" if place else "left") for place, title in enumerate(titles)]
    return Table(columns, rows, say("caption.forecast", below=below, on=on), legend=say("legend"))


def side_table(first: Inspection, second: Inspection, say: Words = ENGLISH) -> Table:
    """Two checkpoints, measure by measure."""
    rows: list[Row] = [
        [described(row["measure"], say)[0], *(number(row[name]) for name in row.index[1:])]
        for _, row in side_by_side(first, second).iterrows()
    ]
    random = say("null.random")
    names = (first.name, random, second.name, random, say("column.correlation"))
    return Table([Column(say("column.measure"), "left"), *map(Column, names)], rows, say("caption.side"))


def _columns(measures: Sequence[Measure], say: Words) -> list[Column]:
    return [Column(described(one.name, say)[0], rank=one.rank) for one in measures]


def _effect(row: pd.Series) -> Cell:
    below = "" if math.isnan(row["perplexity"]) else perplexity(row["perplexity"])
    return Cell(number(row["cosine"], 3), below)


def _spread(row: pd.Series, one: Measure) -> Cell:
    """`0.13` with `−0.21…0.73`."""
    median, low, high = (number(row[one.name + end], one.digits) for end in ("", "_min", "_max"))
    return Cell(median) if math.isnan(row[one.name]) else Cell(median, f"{low}…{high}")


def _kinds(heads: pd.DataFrame) -> list[pd.DataFrame]:
    """The heads of each shape."""
    return [mine for _, mine in heads.groupby(["dim", "head_dim"], sort=False)]


def _random(heads: pd.DataFrame, measures: Sequence[Measure], say: Words) -> Row:
    """The nulls of these heads, which on data differ a little from layer to layer: the median."""
    nulls = [heads.get(f"{one.name}_null", pd.Series(dtype=float)).median() for one in measures]
    cells = [_muted(null, one.digits) for null, one in zip(nulls, measures, strict=True)]
    return [Cell(say("null.random"), style="muted"), *cells]


def _muted(value: float, digits: int = 2) -> Cell:
    return Cell(number(value, digits), style="muted")


def _plain(value: Any) -> Any:
    """For JSON: Python's own types, and None for what is no finite number."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
