"""What heads do on a text: measures in the metric of their own activations, their behaviour, and the forecast.

One half of the pieces of the text is for all that is fitted or measured, the other for the effect of replacing heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from querykey.bilinear import null
from querykey.inspection.behaviour import BEHAVIOUR, behaviour, mean, unseeing
from querykey.inspection.forecast import BATCH, REPLACEMENTS, Yardstick, forecast
from querykey.inspection.measures import with_null
from querykey.inspection.text import pieces
from querykey.machine import one_thread
from querykey.models.huggingface import HuggingFaceModel
from querykey.models.moments import Moments
from querykey.models.rotation import rotary_form
from querykey.models.trace import LayerTrace

ON_DATA = ("symmetry", "tied_share", "signed_share", "effective_rank", "distance")
ROTARY_ON_DATA = ("symmetry", "tied_share")
EFFECTS = ("cosine", "perplexity")
Per = Literal["all", "layer", "head"]
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Data:
    """What a text has shown: rows by ``layer`` and ``head``, the `forecast` table, and the tokens of either half."""

    heads: pd.DataFrame
    forecast: pd.DataFrame
    fitted_on: int
    measured_on: int

    @property
    def perplexity(self) -> bool:
        """Whether the model is one that has a perplexity."""
        return bool(self.forecast["perplexity"].notna().any())


@one_thread()
def on_text(
    model: HuggingFaceModel, text: str, *, length: int, count: int, per: Per, window: int | None, watch: Watch
) -> Data:
    """Runs the model on `count` pieces of `length` tokens; see `Data`."""
    ids = pieces(model, text, length, count)
    fit, measure = ids[0::2], ids[1::2]
    moments, seen = _gathered(model, fit, watch)
    foldable = {number: one for number, one in moments.items() if one.layer.positions != "other"}
    frames = []
    for done, (number, columns) in enumerate(seen.items(), start=1):
        metric = _in_own_metric(foldable[number], window) if number in foldable else {}
        frames.append(pd.DataFrame({"layer": number, "head": range(len(moments[number].mean)), **metric, **columns}))
        watch("measures on the text", done, len(seen))
    yardstick = Yardstick(model, measure)
    effects = forecast(yardstick, foldable, per=per, watch=lambda done, total: watch("heads replaced", done, total))
    heads = pd.concat(frames, ignore_index=True)
    for scope in ("layer", "head"):
        heads = _with_effects(heads, effects, scope)
    return Data(heads, effects, fit.numel(), measure.numel())


def _gathered(
    model: HuggingFaceModel, ids: Int[Tensor, "pieces length"], watch: Watch
) -> tuple[dict[int, Moments], dict[int, dict[str, Any]]]:
    """Moments and behaviour of every layer, by its number in the checkpoint."""
    numbers = model.numbers
    moments = {
        n: Moments(layer, partial(model.output_weights, n)) for n, layer in zip(numbers, model.layers, strict=True)
    }
    seen: dict[int, list[dict[str, Tensor]]] = {number: [] for number in moments}
    batches = ids.split(BATCH)
    layers: tuple[LayerTrace, ...] = ()
    for done, batch in enumerate(batches, start=1):
        layers = model.trace(batch).layers
        for number, layer in zip(numbers, layers, strict=True):
            moments[number].add(layer)
            seen[number].append(behaviour(layer, not model.causal))
        watch("pieces of text read", done, len(batches))
    columns: dict[int, dict[str, Any]] = {}
    for number, layer in zip(numbers, layers, strict=True):
        nulls = unseeing(layer, not model.causal, torch.Generator().manual_seed(0))
        values = mean(seen[number])
        columns[number] = {}
        for name in BEHAVIOUR:
            if name in values:
                columns[number] |= {name: values[name].numpy(force=True), f"{name}_null": nulls[name]}
    return moments, columns


def _in_own_metric(moments: Moments, window: int | None) -> dict[str, Any]:
    """The measures of the heads on their own queries and keys, with the null of random weights on the same inputs."""
    form, spectrum, rotary = moments.form(), moments.spectrum(), moments.layer.rotary
    turning = None if rotary is None else rotary_form(form, rotary, window)
    random = null(
        len(spectrum),
        moments.head_dim,
        torch.Generator().manual_seed(0),
        draws=32,
        rotation=None if turning is None else turning.rotation,
        spectrum=spectrum,
    )
    random = {_named(name): one for name, one in random.items()}
    columns: dict[str, Any] = {}
    for name in ON_DATA:
        columns |= with_null(_named(name), getattr(form, name), random)
    for name in ROTARY_ON_DATA:
        values = None if turning is None else getattr(turning, name)
        columns |= with_null(_named(f"{name}_rotary"), values, random)
    return columns | {"key_only_share": form.key_only_share.numpy(force=True)}


def _named(measure: str) -> str:
    """What a measure is called on data: `symmetry_data`, `symmetry_data_rotary`."""
    return f"{measure.removesuffix('_rotary')}_data" + ("_rotary" if measure.endswith("_rotary") else "")


def _with_effects(heads: pd.DataFrame, effects: pd.DataFrame, scope: str) -> pd.DataFrame:
    """Columns such as `cosine_tied`, of the head replaced alone, or `layer_cosine_tied`, of its layer."""
    mine = effects[effects["scope"] == scope]
    keys = ["layer", "head"] if scope == "head" else ["layer"]
    for kind in REPLACEMENTS:
        for effect in EFFECTS:
            rows = mine.loc[mine["replacement"] == kind, [*keys, effect]].dropna()
            name = f"{effect}_{kind}" if scope == "head" else f"layer_{effect}_{kind}"
            if len(rows):
                heads = heads.merge(rows.rename(columns={effect: name}), on=keys, how="left")
    return heads
