"""The numbers of an inspection as tables: per head or per layer, for people and for programs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd

from querykey.inspection.data import Data
from querykey.inspection.inspect import Inspection

Per = Literal["layer", "head"]
RANDOM = "random"
NOTHING = "–"
KEYS = ("checkpoint", "layer", "head", "kv_head")
FACTS = ("dim", "head_dim", "scaling", "positions", "qk_norm", "uses", "module")


class Column(NamedTuple):
    """A measure as it is shown: its name in the data, the words above it, its digits; rank 1 stays if room is short."""

    name: str
    words: str
    digits: int
    rank: int


SHOWN = (
    Column("symmetry", "symmetry", 2, 1),
    Column("symmetry_rotary", "symmetry\nrotary", 2, 6),
    Column("tied_share", "tied\nshare", 2, 3),
    Column("tied_share_rotary", "tied share\nrotary", 2, 2),
    Column("signed_share", "signed\nshare", 2, 4),
    Column("effective_rank", "effective\nrank", 1, 5),
    Column("distance", "distance\nW_Q to W_K", 2, 7),
    Column("directionality", "direction-\nality", 2, 8),
)
"""What a terminal shows, as many as have room; the other formats have every column."""

ON_TEXT = (
    Column("tied_share_data", "tied share\non data", 2, 1),
    Column("key_only_share", "keys\nalone", 2, 4),
    Column("entropy", "entropy", 2, 2),
    Column("first_mass", "on the\nfirst", 2, 5),
    Column("self_mass", "on\nitself", 2, 3),
    Column("previous_mass", "on the one\nbefore", 2, 6),
    Column("next_mass", "on the one\nafter", 2, 7),
    Column("cycle_longer", "cycles\nof 3 or more", 2, 8),
)
"""The same of what a text has shown."""

FORECAST = {"tied": "W_Q = W_K", "signed": "with signs", "core": "with a core", "key_value": "K = V"}
"""Replacements and what they are called."""


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
    for layer, mine in heads.groupby("layer", sort=True):
        row: dict[str, Any] = {"layer": layer, "heads": len(mine)}
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
        if (
            null not in a
            or null not in b
            or name.startswith("layer_")
            or (a[name].isna().all() and b[name].isna().all())
        ):
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


def shown(heads: pd.DataFrame, columns: Sequence[Column] = SHOWN, room: int = len(SHOWN)) -> list[Column]:
    """Of these columns the ones that the heads have, the most important of them if there is no `room` for all."""
    there = [column for column in columns if column.name in heads and heads[column.name].notna().any()]
    first = sorted(there, key=lambda column: column.rank)[: max(room, 1)]
    return [column for column in there if column in first]


def layer_words(heads: pd.DataFrame, columns: Sequence[Column], *, summed: bool = False) -> list[list[str]]:
    """A row per layer: its number, median and span of each column; then of random heads.

    With `summed` the last column is the symmetry of the sum over the layer's heads.
    """
    rows = []
    for _, row in per_layer(heads).iterrows():
        cells = [_spread(row, column) for column in columns]
        rows.append([str(row["layer"]), *cells, *[number_text(row["layer_symmetry"])] * summed])
    nulls = [(_random(kind, columns), number_text(kind["layer_symmetry_null"].iloc[0])) for kind in _kinds(heads)]
    return rows + [[*cells, *[last] * summed] for cells, last in nulls]


def head_words(heads: pd.DataFrame, columns: Sequence[Column]) -> list[list[str]]:
    """A row per head: layer, head, key head, and the columns; then of random heads."""
    rows = [
        [str(row[key]) for key in KEYS[1:]] + [number_text(row[column.name], column.digits) for column in columns]
        for _, row in heads.iterrows()
    ]
    return rows + [[RANDOM, "", "", *_random(kind, columns)[1:]] for kind in _kinds(heads)]


def forecast_words(data: Data) -> list[list[str]]:
    """A row per thing that is replaced: the cosine of the output for each replacement, and the perplexity under it."""
    rows = []
    for (scope, layer, head), mine in data.forecast.groupby(["scope", "layer", "head"], sort=False):
        effects = {row["replacement"]: _effect(row) for _, row in mine.iterrows()}
        one = f"layer {layer}" + (f" head {head}" if scope == "head" else "")
        what = {"none": "nothing", "all": "all heads"}.get(str(scope), one)
        rows.append([what, *(effects[""] if scope == "none" else effects[kind] for kind in FORECAST)])
    return rows


def number_text(value: float, digits: int = 2) -> str:
    """`0.13`, `−0.21`, `–` for what is not there."""
    if math.isnan(value):
        return NOTHING
    text = f"{value:.{digits}f}"
    return "0." + "0" * digits if float(text) == 0 else text.replace("-", "−")


def perplexity_text(value: float) -> str:
    """`7.43`, `31,480`."""
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _effect(row: pd.Series) -> str:
    below = "" if math.isnan(row["perplexity"]) else f"\n{perplexity_text(row['perplexity'])}"
    return number_text(row["cosine"], 3) + below


def _spread(row: pd.Series, column: Column) -> str:
    """`0.13` above `−0.21…0.73`."""
    median, low, high = (number_text(row[column.name + end], column.digits) for end in ("", "_min", "_max"))
    return f"{median}\n{low}…{high}" if median != NOTHING else NOTHING


def _kinds(heads: pd.DataFrame) -> list[pd.DataFrame]:
    """The heads of each shape."""
    return [mine for _, mine in heads.groupby(["dim", "head_dim"], sort=False)]


def _random(heads: pd.DataFrame, columns: Sequence[Column]) -> list[str]:
    """The nulls of these heads, which on data differ a little from layer to layer: the median."""
    nulls = [heads.get(f"{column.name}_null", pd.Series(dtype=float)).median() for column in columns]
    return [RANDOM, *(number_text(null, column.digits) for null, column in zip(nulls, columns, strict=True))]


def _plain(value: Any) -> Any:
    """For JSON: Python's own types, and None for what is no finite number."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
