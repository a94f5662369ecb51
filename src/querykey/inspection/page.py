"""The page of an inspection: one file that needs nothing beside itself.

The template says what stands where; this module makes what it is given: sentences, tables, maps, and the numbers from
which the page's script draws the head that is chosen.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from markupsafe import Markup, escape
from rich.filesize import decimal

from querykey.inspection import tables
from querykey.inspection.columns import (
    ALONE,
    BEHAVIOUR,
    CHANGES,
    ENGLISH,
    ON_TEXT,
    ON_WEIGHTS,
    Measure,
    counted,
    described,
    shown,
)
from querykey.inspection.data import Data
from querykey.inspection.forecast import REPLACEMENTS
from querykey.inspection.inspect import Inspection
from querykey.inspection.names import layer_names
from querykey.inspection.ranking import ranking_table
from querykey.inspection.summary import sentences
from querykey.report import heatmaps
from querykey.report import page as pages
from querykey.report.files import write_atomically
from querykey.report.numbers import number, perplexity
from querykey.report.words import Words

POINTS, MOST = 64, 1 << 17  # of a spectrum that are drawn, and of all, so that pages of large models stay light
_SCRIPT = {"called": ("layer", "head"), "script.keys.one": ("key",), "script.keys.more": ("key", "n")} | {
    f"script.{name}": ("name",) for name in ("eigenvalues", "singular")
}  # what the script of the page says, with the places that it fills in
KEPT, LOST = 0.98, 0.9  # cosines of the output above which it is nearly unchanged, and below which it is lost


class Forecast(NamedTuple):
    """A replacement of all heads at once: what it is called, how much is kept, also in a word, and the numbers."""

    title: str
    kept: str
    word: str
    cosine: str
    perplexity: str


def write_html(inspections: Sequence[Inspection], folder: str | Path, say: Words = ENGLISH) -> Path:
    """Write the page as ``report.html`` into `folder`, which is made if need be; whole or not at all."""
    path = Path(folder) / "report.html"
    with write_atomically(path) as partial:
        partial.write_text(as_html(inspections, say), encoding="utf-8")
    return path


def as_html(inspections: Sequence[Inspection], say: Words = ENGLISH) -> str:
    """One page for one checkpoint, or for two side by side."""
    words = {name: say(name, **{place: f"{{{place}}}" for place in places}) for name, places in _SCRIPT.items()}
    data = {"words": words, "checkpoints": [_data(inspection, say) for inspection in inspections]}
    return (
        pages.environment("inspection")
        .get_template("report.html.j2")
        .render(
            say=say,
            marked=lambda key, **values: _marked(say(key, **values)),
            title=say.join([inspection.name for inspection in inspections]),
            checkpoints=[_checkpoint(inspection, say) for inspection in inspections],
            maps=_shown(ON_WEIGHTS, inspections, say),
            on_text=_shown((*ON_TEXT, *ALONE), inspections, say),
            heading=say.join([*dict.fromkeys(say(f"on.{one.data.reads}") for one in inspections if one.data)]),
            distances=say.join([*dict.fromkeys(_distances(one, say) for one in inspections if _rotary(one))]),
            compared=tables.side_table(inspections[0], inspections[1], say) if len(inspections) == 2 else None,
            data=json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
            kept=KEPT,
            lost=LOST,
        )
    )


def _checkpoint(inspection: Inspection, say: Words) -> dict[str, Any]:
    """What the page says of one checkpoint in words and tables."""
    heads, data = inspection.heads, inspection.data
    layers = heads.groupby("module", sort=False).first()
    sizes = sorted({(str(row.head_dim), str(row.dim)) for row in layers.itertuples()})
    facts = {"layers": counted(say, len(layers), "layer"), "heads": counted(say, len(heads), "head")}
    facts |= {"modules": _modules(layers), "sizes": say.join([say("page.size", size=k, dim=d) for k, d in sizes])}
    some, every = (decimal(size) for size in (inspection.bytes_read, inspection.bytes_in_all))
    place, revision, about = inspection.place, inspection.revision, say("caption.layers")
    changes = tables.layer_table(heads, CHANGES, say("caption.adapter"), say) if inspection.base else None
    return {
        "name": inspection.name,
        "place": say("page.revision", place=place, revision=revision) if revision else place,
        "kind": inspection.kind,
        "rows": _spans(layer_names(heads).values(), say),
        "facts": say("page.facts", **facts),
        "sentences": [_unbroken(sentence) for sentence in sentences(inspection, say)],
        "forecast": forecasts(data, say) if data else [],
        "forecast_table": tables.forecast_table(data, layer_names(heads), say) if data else None,
        "ranking": ranking_table(heads, say),
        "layers": tables.layer_table(heads, ON_WEIGHTS, about, say, summed=True),
        "behaviour": tables.layer_table(heads, BEHAVIOUR, about, say) if data else None,
        "changes": changes,
        "data": data,
        "read": say("page.read", some=some, all=every),
        "rotary": _rotary(inspection),
    }


def forecasts(data: Data, say: Words = ENGLISH) -> list[Forecast]:
    """What replacing all heads at once changes; [] where it was not forecast."""
    rows = {row["replacement"]: row for _, row in data.forecast[data.forecast["scope"] == "all"].iterrows()}
    before = float(data.forecast["perplexity"].iloc[0])
    found = []
    for kind in (kind for kind in REPLACEMENTS if kind in rows):
        cosine, after = float(rows[kind]["cosine"]), float(rows[kind]["perplexity"])
        kept = "nearly" if cosine >= KEPT else "lost" if cosine < LOST else "changed"
        shown = "" if math.isnan(after) else f"{perplexity(before)} → {perplexity(after)}"
        found.append(Forecast(say(f"replaced.{kind}"), kept, say(f"kept.{kept}"), number(cosine, 3), shown))
    return found


def _rotary(inspection: Inspection) -> bool:
    return bool(inspection.heads["symmetry_rotary"].notna().any())


def _distances(inspection: Inspection, say: Words) -> str:
    """Over which distances rotary measures are averaged."""
    window = inspection.window
    return say("page.distances", window=window) if window else say("page.all-distances")


def _marked(text: str) -> Markup:
    """Text with `code` and with *colours*, which are orange, blue and violet in this order."""
    colours = iter(("d2", "d1", "d5"))
    found = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", lambda part: f'<b class="{next(colours)}">{part[1]}</b>', found))


def _spans(names: Collection[str], say: Words = ENGLISH) -> str:
    """Names of consecutive layers in short: `encoder 0 to 5, decoder 0 to 5`; empty where they are numbers alone."""
    parts = [re.fullmatch(r"(.*?)(\d+)( cross)?", name) for name in names]
    if all(part and not part[1] and not part[3] for part in parts):
        return ""
    spans: list[tuple[str, str, str, str]] = []  # kind, first name without its mark, last number, mark
    for name, part in zip(names, parts, strict=True):
        before, number, mark = (part[1], part[2], part[3] or "") if part else (name, "", "")
        if spans and spans[-1][0] == before + mark:
            spans[-1] = (*spans[-1][:2], number, mark)
        else:
            spans.append((before + mark, before + number, "", mark))
    named = [say("page.to", first=first, last=last) if last else first for _, first, last, _ in spans]
    return ", ".join(name + span[3] for name, span in zip(named, spans, strict=True))


def _modules(layers: pd.DataFrame) -> str:
    """The modules with attention, with N for their numbers."""
    patterns = {re.sub(r"\b\d+\b", "N", str(module)) for module in layers.index}
    return ", ".join(sorted(patterns))


def _shown(measures: Sequence[Measure], inspections: Sequence[Inspection], say: Words) -> list[dict[str, Any]]:
    """The maps of those measures that one of the checkpoints has at least."""
    there = {one.name for inspection in inspections for one in shown(inspection.heads, measures)}
    return [_maps(one, inspections, say) for one in measures if one.name in there]


def _unbroken(sentence: str) -> str:
    """Formulas that stay on one line."""
    for formula in ("W_Q = W_K", "W_K := W_Q", "K = V"):
        sentence = sentence.replace(formula, formula.replace(" ", "\u00a0"))
    return sentence


def _maps(one: Measure, inspections: Sequence[Inspection], say: Words = ENGLISH) -> dict[str, Any]:
    """The maps of a measure, one for each checkpoint, in the same colours, and their scale with the null on it.

    With two colours one is nearer to a head with W_Q = W_K than random heads are, the other farther.
    """
    grids = [_grid(inspection, one.name) for inspection in inspections]
    nulls = [null for null in (_null(inspection, one.name) for inspection in inspections) if not np.isnan(null)]
    limits = one.limits or _limits(grids, nulls)
    apart = bool(nulls) and max(nulls) - min(nulls) > 0.1 * (limits[1] - limits[0])
    sided = (one.shared is not None or one.sided) and bool(nulls) and not apart
    look: dict[str, Any] = {"limits": limits, "centre": nulls[0] if sided else None}
    look["flipped"] = sided and one.shared is not None and one.shared < nulls[0]
    called, (title, about) = say(f"null.{one.null}"), described(one.name, say)
    marks = {called: nulls[0]} if nulls else {}
    if apart:
        sides = [say("null.side", null=called, side=say(side)) for side in ("left", "right")]
        marks = dict(zip(sides, nulls, strict=True))
    elif one.shared is not None:
        marks[say("shared")] = one.shared
    return {
        "name": one.name,
        "title": title,
        "about": about,
        "drawn": [
            heatmaps.heatmap(
                say("page.map", title=title, name=inspection.name),
                grid,
                x_label=say("column.head"),
                y_label=say("column.layer"),
                rows=_numbers(inspection.heads),
                **look,
            )
            for inspection, grid in zip(inspections, grids, strict=True)
        ],
        "scale": heatmaps.scale(title, marks=marks, **look),
    }


def _grid(inspection: Inspection, name: str) -> Float[np.ndarray, "layers heads"]:
    """A measure by layer and head; NaN where a layer has fewer heads."""
    heads = inspection.heads.reindex(columns=["module", "head", name])
    grid = heads.pivot(index="module", columns="head", values=name)
    return grid.loc[heads["module"].unique()].to_numpy(dtype=float)


def _numbers(heads: pd.DataFrame) -> list[str]:
    """The model's own number of each layer."""
    return [str(number) if number >= 0 else "" for number in heads.drop_duplicates("module")["layer"]]


def _null(inspection: Inspection, name: str) -> float:
    return float(inspection.heads.get(f"{name}_null", pd.Series(dtype=float)).median())


def _limits(grids: Sequence[np.ndarray], nulls: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest number, the nulls among them, and a little more."""
    values = np.concatenate([np.ravel(grid) for grid in grids] + [np.array(nulls)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    pad = 0.04 * (high - low) or 0.5
    return low - pad, high + pad


def _data(inspection: Inspection, say: Words) -> dict[str, Any]:
    """What the script needs: all measures of each head with their nulls, and the spectra, thinned out."""
    heads, names = inspection.heads, layer_names(inspection.heads)
    places = {module: place for place, module in enumerate(names)}
    numbers = heads.select_dtypes("number").drop(columns=[*tables.KEYS, *tables.FACTS], errors="ignore")
    columns = [
        name for name in map(str, numbers) if not name.endswith(("_null", "_null_sd")) and heads[name].notna().any()
    ]
    nulls = [tuple(_short(row)) for row in heads.reindex(columns=[f"{n}_null" for n in columns]).to_numpy(dtype=float)]
    different = {null: place for place, null in enumerate(dict.fromkeys(nulls))}
    points = min(POINTS, max(16, MOST // len(heads)))
    return {
        "name": inspection.name,
        "measures": columns,
        "described": [described(name, say) for name in columns],
        "layers": list(names.values()),
        "heads": [[places[m], h, k] for m, h, k in zip(heads["module"], heads["head"], heads["kv_head"], strict=True)],
        "values": [_short(row) for row in numbers[columns].to_numpy(dtype=float)],
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
    if not len(values):
        return []
    chosen = np.unique(np.linspace(0, len(values) - 1, points).round().astype(int))
    return [round(float(value), 3) for value in values[chosen]]


def _short(row: np.ndarray) -> list[float | None]:
    """Four significant digits, and None for what is not there."""
    return [None if np.isnan(value) else float(f"{value:.4g}") for value in row]
