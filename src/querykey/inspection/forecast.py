"""The forecast: what a model loses if heads are replaced by the closest ones that share weights.

Nothing is trained. The replacements of `models.replacements` are fitted to some pieces of text, or to some images, and
the output of the model is compared on others. So a forecast is a lower bound of what a conversion with training can
reach. Under rotary positions `key_value` costs time when the model runs: keys are made of the shared tensor before they
are rotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from querykey.inspection.options import Per
from querykey.models.huggingface import HuggingFaceModel, Inputs
from querykey.models.intervention import Interventions
from querykey.models.moments import Moments
from querykey.models.replacements import Kind, Replacements
from querykey.models.resume import Start
from querykey.models.trace import LayerTrace

REPLACEMENTS: tuple[Kind, ...] = ("tied", "signed", "core", "key_value")
COMPARISONS: tuple[Kind, ...] = ("copied", "uniform")
TOKENS, LOGITS = 1024, 1 << 25  # numbers of them in one batch at most


class Effect(NamedTuple):
    """Of a replacement on the output, over all pieces; `perplexity` is NaN unless the model is a causal language model.

    `cosine` is that between the hidden states after the last layer with and without the replacement, averaged over
    tokens, and `pooled_cosine` between their means over a piece, which is what sentence embeddings are made of.
    """

    cosine: float
    pooled_cosine: float
    perplexity: float


@dataclass(frozen=True, eq=False)
class _Batch:
    inputs: Inputs
    hidden: Tensor
    start: Start


class Yardstick:
    """The output of a model as it is on some pieces of text or images, with which others are compared.

    `nothing` is the effect of no replacement. `see` gets the number in the checkpoint and the trace of each layer, as
    it has run on a batch.
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        inputs: Inputs,
        see: Callable[[int, LayerTrace], None] = lambda number, layer: None,
    ) -> None:
        self.model, self.scored = model, False
        self._batches: list[_Batch] = []
        losses = []
        for batch in batches(model, inputs):
            trace, start = model.start(batch, each_layer(model, see))
            self.scored = model.causal and trace.logits is not None
            self._batches.append(_Batch(batch, trace.hidden, start))
            if self.scored:
                losses.append(_losses(trace.logits, batch))
        self.nothing = Effect(1.0, 1.0, _perplexity(losses))

    def effect(self, interventions: Interventions) -> Effect:
        """The effect of these interventions."""
        cosines, pooled, losses = [], [], []
        for batch in self._batches:
            found = self.model.output(batch.inputs, interventions, batch.start, logits=self.scored)
            cosines.append(F.cosine_similarity(found.hidden, batch.hidden, dim=-1).flatten())
            pooled.append(F.cosine_similarity(found.hidden.mean(1), batch.hidden.mean(1), dim=-1))
            if self.scored:
                losses.append(_losses(found.logits, batch.inputs))
        return Effect(float(torch.cat(cosines).mean()), float(torch.cat(pooled).mean()), _perplexity(losses))


def _losses(
    logits: Float[Tensor, "batch length vocabulary"] | None, ids: Int[Tensor, "batch length"]
) -> Float[Tensor, " _"]:
    """The loss of each token but the first of each piece, in nats."""
    assert logits is not None
    pieces = zip(logits, ids.to(logits.device), strict=True)  # each by itself: logits are the largest tensor of all
    return torch.cat([F.cross_entropy(scores[:-1], piece[1:], reduction="none") for scores, piece in pieces])


def _perplexity(losses: list[Tensor]) -> float:
    """NaN where nothing was predicted."""
    return math.exp(torch.cat(losses).double().mean()) if losses else math.nan


def each_layer(model: HuggingFaceModel, see: Callable[[int, LayerTrace], None]) -> Callable[[LayerTrace], None]:
    """A function for one pass that hands each layer to `see` with its number in the checkpoint."""
    running = iter(model.numbers)
    return lambda layer: see(next(running), layer)


def batches(model: HuggingFaceModel, inputs: Inputs) -> tuple[Tensor, ...]:
    """The pieces or images in batches that fit into memory with the logits of all their tokens."""
    most = TOKENS
    if model.reads == "text":
        most = min(TOKENS, LOGITS // int(model.model.config.get_text_config().vocab_size))
    found: tuple[Tensor, ...] = inputs.split(max(1, most // model.tokens(inputs)[1]))
    return found


def forecast(
    yardstick: Yardstick,
    fitted: Mapping[int, Moments],
    *,
    per: Per = "all",
    watch: Callable[[int], None] = lambda layers: None,
) -> pd.DataFrame:
    """A row for every replacement of all heads at once, then of every layer or head.

    `fitted` has moments by the number of the layer in the checkpoint; layers that are used several times are replaced
    everywhere, and those that `fitted` leaves out nowhere. Columns ``scope`` ("none", "all", "layer", "head"),
    ``layer``, ``head`` (−1 where it is not one), ``replacement`` and those of `Effect`; the first row is the model as
    it is, and the only one where nothing has been fitted. ``module`` is that of the layer, or
    empty. After each row `watch` gets its number of `layers_run`.
    """
    places = [(at, n) for at, n in enumerate(yardstick.model.numbers) if n in fitted]
    replacements = Replacements({at: fitted[n] for at, n in places})
    nothing = {"scope": "none", "module": "", "layer": -1, "head": -1, "replacement": ""}
    rows = [nothing | yardstick.nothing._asdict()]
    for (scope, layer, head, kind), layers in zip(
        _todo(fitted, per), layers_run(yardstick.model, fitted, per), strict=True
    ):
        chosen = [(at, None if head < 0 else head) for at, n in places if layer in (-1, n)]
        effect = yardstick.effect(replacements.interventions(kind, chosen))
        module, number = ("", -1) if layer < 0 else (fitted[layer].layer.name, fitted[layer].layer.number)
        what = {"scope": scope, "module": module, "layer": number, "head": head, "replacement": kind}
        rows.append(what | effect._asdict())
        watch(layers)
    return pd.DataFrame(rows)


def layers_run(model: HuggingFaceModel, fitted: Mapping[int, Moments], per: Per) -> list[int]:
    """For each replacement of `forecast` the number of layers that run on each batch."""
    first = {number: place for place, number in reversed([*enumerate(model.numbers)])}
    return [len(model.layers) - first.get(layer, 0) for _, layer, _, _ in _todo(fitted, per)]


def _todo(fitted: Mapping[int, Moments], per: Per) -> Iterator[tuple[str, int, int, Kind]]:
    """Scope, layer, head and kind of each replacement."""
    if per == "none" or not fitted:
        return
    for kind in (*REPLACEMENTS, *COMPARISONS):
        yield "all", -1, -1, kind
    for number, moments in fitted.items():
        if per == "layer":
            yield from (("layer", number, -1, kind) for kind in REPLACEMENTS)
        elif per == "head":
            yield from (
                ("head", number, head, kind) for head in range(moments.layer.query.heads) for kind in REPLACEMENTS
            )
