"""The page of an inspection: one file that needs nothing beside itself.

The template says what stands where; here is all that it is given: rows of words, drawings by `figures`, and the numbers
from which the page's script draws the head that is chosen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.filesize import decimal

from querykey.inspection import tables
from querykey.inspection.inspect import Inspection
from querykey.inspection.summary import plural, sentences
from querykey.report import heatmaps
from querykey.report import page as pages

POINTS, MOST = 64, 1 << 17  # of a spectrum that are drawn, and of all, so that pages of large models stay light


class Map(NamedTuple):
    """A measure that is mapped, what it means in a line, its limits (None: those of the data), and its marks.

    `shared` is what a head with W_Q = W_K reads, `null` what the null is called; the palest colour is that of the null,
    or where `rises` that of the lower limit.
    """

    name: str
    title: str
    about: str
    limits: tuple[float, float] | None = None
    shared: float | None = None
    null: str = "random"
    rises: bool = False


MAPS = (
    Map("symmetry", "symmetry", "of W_Q W_Kᵀ: 1 symmetric, −1 antisymmetric, 0 random", (-1, 1), 1.0),
    Map("symmetry_rotary", "symmetry, rotary", "the same under rotary positions, over all distances", (-1, 1), 1.0),
    Map("tied_share", "tied share", "energy that the best W_Q = W_K keeps", (0, 1), 1.0),
    Map("tied_share_rotary", "tied share, rotary", "the same under rotary positions", (0, 1), 1.0),
    Map("signed_share", "signed share", "energy that W_Q = W_K with a sign per dimension keeps", (0, 1), 1.0),
    Map("effective_rank", "effective rank", "dimensions that the head uses"),
    Map("distance", "distance", "between W_Q and W_K where they are most alike: 0 tied", (0, 2), 0.0),
    Map("directionality", "directionality", "negative: a few keys stand out; positive: a few queries", (-1, 1)),
)
BLIND, MAP = "does not look", "random map"
ON_TEXT = (
    Map("symmetry_data", "symmetry on data", "in the metric of the head's own queries and keys", (-1, 1), 1.0),
    Map("tied_share_data", "tied share on data", "of the scores' variance, in that metric", (0, 1), 1.0),
    Map("symmetry_data_rotary", "symmetry on data, rotary", "the same over all distances", (-1, 1), 1.0),
    Map("tied_share_data_rotary", "tied share on data, rotary", "the same over all distances", (0, 1), 1.0),
    Map("key_only_share", "keys alone", "of the scores' variance, what every query gives alike", (0, 1), rises=True),
    Map("entropy", "entropy", "0 looks at one position, 1 at all alike", (0, 1), null=BLIND),
    Map("first_mass", "on the first position", "mean weight", (0, 1), null=BLIND),
    Map("self_mass", "on itself", "mean weight", (0, 1), null=BLIND),
    Map("previous_mass", "on the position before", "mean weight", (0, 1), null=BLIND),
    Map("next_mass", "on the position after", "mean weight", (0, 1), null=BLIND),
    Map("cycle_2", "cycles of 2", "share of positions that end in one; tied heads have none", (0, 1), None, MAP, True),
    Map("cycle_longer", "cycles of 3 or more", "the same; symmetric scores have none", (0, 1), None, MAP, True),
    *(
        Map(f"cosine_{kind}", f"forecast, {words}", "cosine of the output if this head alone were replaced", rises=True)
        for kind, words in tables.FORECAST.items()
    ),
)


def as_html(inspections: Sequence[Inspection]) -> str:
    """One page for one checkpoint, or for two side by side."""
    return (
        pages.environment("inspection")
        .get_template("report.html.j2")
        .render(
            title=" and ".join(inspection.name for inspection in inspections),
            checkpoints=[_checkpoint(inspection) for inspection in inspections],
            maps=_shown(MAPS, inspections),
            on_text=_shown(ON_TEXT, inspections),
            replacements=list(tables.FORECAST.values()),
            compared=_compared(inspections),
            data=json.dumps([_data(inspection) for inspection in inspections], separators=(",", ":")).replace(
                "<", "\\u003c"
            ),
        )
    )


def _checkpoint(inspection: Inspection) -> dict[str, Any]:
    """What the page says of one checkpoint in words and tables."""
    heads = inspection.heads
    layers = heads.groupby("layer").first()
    sizes = sorted({(str(row.head_dim), str(row.dim)) for row in layers.itertuples()})
    return {
        "name": inspection.name,
        "place": inspection.place + (f" at {inspection.revision}" if inspection.revision else ""),
        "kind": inspection.kind,
        "facts": f"{plural(len(layers), 'layer')} with {plural(len(heads), 'head')} of size "
        + " and ".join(f"{size} in width {dim}" for size, dim in sizes),
        "sentences": [_unbroken(sentence) for sentence in sentences(inspection)],
        "table": {
            "heads": [column.words for column in tables.shown(heads)],
            "rows": tables.layer_words(heads, tables.shown(heads), summed=True),
        },
        "data": inspection.data,
        "on_text": _on_text(inspection),
        "read": f"{decimal(inspection.bytes_read)} of {decimal(inspection.bytes_in_all)}",
        "window": inspection.window,
        "rotary": bool(heads["symmetry_rotary"].notna().any()),
    }


def _on_text(inspection: Inspection) -> dict[str, Any] | None:
    """The table of behaviour and that of the forecast."""
    if inspection.data is None:
        return None
    columns = tables.shown(inspection.heads, tables.ON_TEXT)
    return {
        "heads": [column.words for column in columns],
        "rows": tables.layer_words(inspection.heads, columns),
        "forecast": tables.forecast_words(inspection.data),
    }


def _shown(maps: Sequence[Map], inspections: Sequence[Inspection]) -> list[dict[str, Any]]:
    """Those that one of the checkpoints has at least."""
    frames = [inspection.heads for inspection in inspections]
    there = [one for one in maps if any(one.name in heads and heads[one.name].notna().any() for heads in frames)]
    return [_maps(one, inspections) for one in there]


def _unbroken(sentence: str) -> str:
    """Formulas that stay on one line."""
    for formula in ("W_Q = W_K", "W_K := W_Q", "K = V"):
        sentence = sentence.replace(formula, formula.replace(" ", "\u00a0"))
    return sentence


def _maps(one: Map, inspections: Sequence[Inspection]) -> dict[str, Any]:
    """The maps of a measure, one for each checkpoint, in the same colours, and their scale with the null on it."""
    grids = [_grid(inspection, one.name) for inspection in inspections]
    nulls = [null for null in (_null(inspection, one.name) for inspection in inspections) if not np.isnan(null)]
    limits = one.limits or _limits(grids, nulls)
    apart = bool(nulls) and max(nulls) - min(nulls) > 0.1 * (limits[1] - limits[0])
    rises = one.rises or not nulls or apart
    look: dict[str, Any] = {"limits": limits, "centre": None if rises else nulls[0]}
    marks = {one.null: nulls[0]} if nulls else {}
    if apart:
        marks = {f"{one.null}, {side}": null for side, null in zip(("left", "right"), nulls, strict=True)}
    elif one.shared is not None:
        marks["shared"] = one.shared
    return {
        "title": one.title,
        "about": one.about,
        "drawn": [
            heatmaps.heatmap(f"{one.title} of {inspection.name}", grid, x_label="head", y_label="layer", **look)
            for inspection, grid in zip(inspections, grids, strict=True)
        ],
        "scale": heatmaps.scale(one.title, marks=marks, **look),
    }


def _grid(inspection: Inspection, name: str) -> Float[np.ndarray, "layers heads"]:
    """A measure by layer and head; NaN where a layer has fewer heads."""
    heads = inspection.heads.reindex(columns=["layer", "head", name])
    return heads.pivot(index="layer", columns="head", values=name).to_numpy(dtype=float)


def _null(inspection: Inspection, name: str) -> float:
    return float(inspection.heads.get(f"{name}_null", pd.Series(dtype=float)).median())


def _limits(grids: Sequence[np.ndarray], nulls: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest number, the nulls among them, and a little more."""
    values = np.concatenate([np.ravel(grid) for grid in grids] + [np.array(nulls)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _compared(inspections: Sequence[Inspection]) -> list[list[str]]:
    """The rows of the table that has two checkpoints side by side."""
    if len(inspections) < 2:
        return []
    rows = tables.side_by_side(*inspections)
    return [
        [row["measure"].replace("_", " "), *(tables.number_text(row[name]) for name in rows.columns[1:])]
        for _, row in rows.iterrows()
    ]


def _data(inspection: Inspection) -> dict[str, Any]:
    """What the script needs: all measures of each head with their nulls, and the spectra, thinned out."""
    heads = inspection.heads
    numbers = heads.select_dtypes("number").drop(columns=[*tables.KEYS, *tables.FACTS], errors="ignore")
    names = [
        name for name in map(str, numbers) if not name.endswith(("_null", "_null_sd")) and heads[name].notna().any()
    ]
    nulls = [tuple(_short(row)) for row in heads.reindex(columns=[f"{n}_null" for n in names]).to_numpy(dtype=float)]
    different = {null: place for place, null in enumerate(dict.fromkeys(nulls))}
    points = min(POINTS, max(16, MOST // len(heads)))
    return {
        "name": inspection.name,
        "measures": names,
        "heads": heads[["layer", "head", "kv_head"]].to_numpy().tolist(),
        "values": [_short(row) for row in numbers[names].to_numpy(dtype=float)],
        "nulls": list(different),
        "null": [different[null] for null in nulls],
        "eigenvalues": [_thinned(eigenvalues[::-1], points) for eigenvalues, _ in inspection.spectra],
        "singular": [_thinned(values, points) for _, values in inspection.spectra],
        "sizes": heads[["dim", "head_dim"]].to_numpy().tolist(),
        "random": {
            f"{dim},{size}": [
                _thinned(values, points) for values in (found.eigenvalues[0, ::-1], found.singular_values[0])
            ]
            for (dim, size), found in inspection.random.items()
        },
    }


def _thinned(values: np.ndarray, points: int) -> list[float]:
    """At most so many of them, evenly, with both ends, to three digits behind the point."""
    chosen = np.unique(np.linspace(0, len(values) - 1, points).round().astype(int))
    return [round(float(value), 3) for value in values[chosen]]


def _short(row: np.ndarray) -> list[float | None]:
    """Four significant digits, and None for what is not there."""
    return [None if np.isnan(value) else float(f"{value:.4g}") for value in row]
