"""What heads do on a text or on images: measures in the metric of their own activations, behaviour, and the forecast.

Shared heads are fitted to one half of the pieces (of text, or images), and all that is printed is measured on the other
one, or on inputs of another file or folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from querykey.bilinear import best_signed, best_tied, best_tied_rotary, null
from querykey.checkpoint.inputs import Reads
from querykey.inspection.behaviour import BEHAVIOUR, behaviour, blind, mean
from querykey.inspection.forecast import REPLACEMENTS, Yardstick, batches, each_layer, forecast, layers_run
from querykey.inspection.images import Images
from querykey.inspection.measures import with_null
from querykey.inspection.options import Per
from querykey.inspection.text import Text
from querykey.machine import at_once
from querykey.models.huggingface import HuggingFaceModel
from querykey.models.moments import Moments
from querykey.models.rotation import rotary_form
from querykey.models.trace import LayerTrace
from querykey.report.progress import Watch

ON_DATA = ("symmetry", "effective_rank", "distance")
SHARES = ("tied_share", "signed_share")  # that the best shared heads keep
EFFECTS = ("cosine", "perplexity")
MEASURED = 2  # the measures of a layer take about as long as two layers on one batch


Reading = Text | Images


@dataclass(frozen=True, eq=False)
class Data:
    """What a text or images have shown: rows by ``module`` and ``head``, and the `forecast` table.

    `calibrated_on` and `measured_on` are numbers of tokens, `context` those of a piece of text or of an image,
    `dimensions` the largest number of dimensions that a fit has to tell apart, and `name` that of the file or folder.
    """

    heads: pd.DataFrame
    forecast: pd.DataFrame
    name: str
    reads: Reads
    context: int
    calibrated_on: int
    measured_on: int
    dimensions: int

    @property
    def perplexity(self) -> bool:
        """Whether the model is one that has a perplexity."""
        return bool(self.forecast["perplexity"].notna().any())

    @property
    def images(self) -> tuple[int, int]:
        """The numbers of images, of those that were read, to fit to and to measure on."""
        return self.calibrated_on // self.context, self.measured_on // self.context


def on_inputs(model: HuggingFaceModel, reading: Reading, *, per: Per, window: int | None, watch: Watch) -> Data:
    """Run the model on a text or on images; see `Data`."""
    calibration, measured = reading.halves(model)
    fitted, seen = _moments(model), _Seen(model)
    free = {number: moments for number, moments in fitted.items() if moments.layer.positions != "other"}
    steps, others, depth = batches(model, calibration), len(batches(model, measured)), len(model.layers)
    work = depth * (len(steps) + others + MEASURED) + others * sum(layers_run(model, free, per))
    count = _Count(watch, work)

    def fit_to(number: int, layer: LayerTrace) -> None:
        fitted[number].add(layer)
        count("calibration", 1)

    def read(number: int, layer: LayerTrace) -> None:
        seen.add(number, layer)
        count(reading.reads, 1)

    for batch in steps:
        model.trace(batch, see=each_layer(model, fit_to))
    yardstick = Yardstick(model, measured, read)
    frames = []

    def measures(number: int) -> dict[str, Any]:
        moments = seen.moments.pop(number)  # which are not needed any more
        return _in_own_metric(moments, fitted[number], window) if number in free else {}

    for (number, moments), metric in zip(fitted.items(), at_once(measures, fitted), strict=True):
        columns = metric | seen.behaviour(number)
        frames.append(pd.DataFrame({"module": moments.layer.name, "head": range(moments.layer.query.heads), **columns}))
        count(f"measures on {reading.reads}", MEASURED)
    effects = forecast(yardstick, free, per=per, watch=lambda layers: count("replacements", others * layers))
    heads = pd.concat(frames, ignore_index=True)
    for scope in ("layer", "head"):
        heads = _with_effects(heads, effects, scope)
    dimensions = 2 * max(layer.query.size for layer in model.layers)
    tokens, context = (model.tokens(half)[0] for half in (calibration, measured))
    counts = context, len(calibration) * tokens, len(measured) * context
    return Data(heads, effects, reading.name, reading.reads, *counts, dimensions)


@dataclass
class _Count:
    """Tells `watch` how much of the `total` work is done; the unit is one layer that runs on one batch."""

    watch: Watch
    total: int
    done: int = 0

    def __call__(self, what: str, layers: int) -> None:
        self.done += layers
        self.watch(f"{what}, layers run", min(self.done, self.total), self.total)


def _moments(model: HuggingFaceModel) -> dict[int, Moments]:
    """Empty moments of every layer, by its number in the checkpoint."""
    layers = dict(zip(model.numbers, model.layers, strict=True))
    return {number: Moments(layer, partial(model.output_weights, number)) for number, layer in layers.items()}


class _Seen:
    """Moments and behaviour of every layer, by its number in the checkpoint."""

    def __init__(self, model: HuggingFaceModel) -> None:
        self.model, self.moments = model, _moments(model)
        self._behaviour: dict[int, list[tuple[int, dict[str, Tensor]]]] = {number: [] for number in self.moments}
        self._nulls: dict[int, dict[str, float]] = {}

    def add(self, number: int, layer: LayerTrace) -> None:
        """Add one batch of the layer with this number in the checkpoint."""
        self.moments[number].add(layer)
        self._behaviour[number].append((len(layer.x), behaviour(layer, not self.model.causal)))
        if number not in self._nulls:
            self._nulls[number] = blind(layer, not self.model.causal, torch.Generator().manual_seed(0))

    def behaviour(self, number: int) -> dict[str, Any]:
        """The columns of `behaviour` with their nulls."""
        nulls = self._nulls[number]
        values = mean(self._behaviour[number])
        columns: dict[str, Any] = {}
        for name in (name for name in BEHAVIOUR if name in values):
            columns |= {name: values[name].numpy(force=True), f"{name}_null": nulls[name]}
        return columns


def _in_own_metric(moments: Moments, fitted: Moments, window: int | None) -> dict[str, Any]:
    """Measures of the heads on their own queries and keys, with the null of random weights on the same inputs.

    The shares that the best shared heads keep are those of heads that were `fitted` to other text.
    """
    form, spectrum, rotary = moments.form(), moments.spectrum(), moments.layer.rotary
    window = moments.layer.distances(window)
    turning = None if rotary is None else rotary_form(form, rotary, window)
    random = null(
        len(spectrum),
        moments.head_dim,
        torch.Generator().manual_seed(0),
        draws=32,
        rotation=None if turning is None else turning.rotation,
        spectrum=spectrum,
        measures=(*ON_DATA, *SHARES),
        rotary_measures=("symmetry", "tied_share"),
    )
    random = {_named(name): one for name, one in random.items()}
    own = fitted.form()
    values: dict[str, Tensor | None] = {name: getattr(form, name) for name in ON_DATA}
    values |= {"tied_share": best_tied(own).kept(form), "signed_share": best_signed(own).kept(form)}
    values |= {"symmetry_rotary": None, "tied_share_rotary": None}
    if rotary is not None and turning is not None:
        tied = best_tied_rotary(rotary_form(own, rotary, window).form, turning.rotation)
        values["symmetry_rotary"] = turning.symmetry
        values["tied_share_rotary"] = tied.kept(turning.form, turning.rotation)
    columns: dict[str, Any] = {}
    for name, value in values.items():
        columns |= with_null(_named(name), value, random)
    return columns | {"key_only_share": form.key_only_share.numpy(force=True)}


def _named(measure: str) -> str:
    """What a measure is called on data: `symmetry_data`, `symmetry_data_rotary`."""
    return f"{measure.removesuffix('_rotary')}_data" + ("_rotary" if measure.endswith("_rotary") else "")


def _with_effects(heads: pd.DataFrame, effects: pd.DataFrame, scope: str) -> pd.DataFrame:
    """Columns such as `cosine_tied`, of the head replaced alone, or `layer_cosine_tied`, of its layer."""
    mine = effects[effects["scope"] == scope]
    keys = ["module", "head"] if scope == "head" else ["module"]
    for kind in REPLACEMENTS:
        for effect in EFFECTS:
            rows = mine.loc[mine["replacement"] == kind, [*keys, effect]].dropna()
            name = f"{effect}_{kind}" if scope == "head" else f"layer_{effect}_{kind}"
            if len(rows):
                heads = heads.merge(rows.rename(columns={effect: name}), on=keys, how="left")
    return heads
