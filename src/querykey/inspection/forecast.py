"""The forecast: what a model loses if heads are replaced by the closest ones that share weights.

Nothing is trained. The replacements of `models.replacements` are fitted to some pieces of a text, and the output of the
model is compared on other pieces. So a forecast is a lower bound of what a conversion with training can reach. Under
rotary positions `key_value` costs time when the model runs: keys are made of the shared tensor before they are rotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from querykey.models.huggingface import HuggingFaceModel
from querykey.models.intervention import Interventions
from querykey.models.moments import Moments
from querykey.models.replacements import Kind, Replacements

REPLACEMENTS: tuple[Kind, ...] = ("tied", "signed", "core", "key_value")
COMPARISONS: tuple[Kind, ...] = ("copied", "uniform")
BATCH = 8  # pieces that run at once


class Effect(NamedTuple):
    """Of a replacement on the output, over all pieces; `perplexity` is NaN for what is no causal language model.

    `cosine` is that between the hidden states after the last layer with and without it, averaged over tokens, and
    `pooled_cosine` between their means over a piece, which is what sentence embeddings are made of.
    """

    cosine: float
    pooled_cosine: float
    perplexity: float


class Yardstick:
    """The output of a model as it is, on some pieces of text."""

    def __init__(self, model: HuggingFaceModel, ids: Int[Tensor, "pieces length"]) -> None:
        self.model, self.ids = model, ids
        self._hidden = [model.trace(batch).hidden for batch in ids.split(BATCH)]

    def effect(self, interventions: Interventions) -> Effect:
        """The effect of these interventions."""
        cosines, pooled, losses = [], [], []
        for batch, before in zip(self.ids.split(BATCH), self._hidden, strict=True):
            run = self.model.trace(batch, interventions)
            cosines.append(F.cosine_similarity(run.hidden, before, dim=-1).flatten())
            pooled.append(F.cosine_similarity(run.hidden.mean(1), before.mean(1), dim=-1))
            if self.model.causal and run.logits is not None:
                losses.append(
                    F.cross_entropy(run.logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
                )
        perplexity = math.exp(torch.cat(losses).double().mean()) if losses else math.nan
        return Effect(float(torch.cat(cosines).mean()), float(torch.cat(pooled).mean()), perplexity)


def forecast(
    yardstick: Yardstick,
    fitted: Mapping[int, Moments],
    *,
    per: Literal["all", "layer", "head"] = "layer",
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """A row for every replacement of all heads at once, then of every layer or head.

    `fitted` has moments by the number of the layer in the checkpoint; layers that are used several times are replaced
    everywhere, and those that `fitted` leaves out nowhere. Columns ``scope`` ("none", "all", "layer", "head"),
    ``layer``, ``head`` (−1 where it is not one), ``replacement`` and those of `Effect`; the first row is the model as
    it is, and the only one where nothing has been fitted.
    """
    model = yardstick.model
    places = [(at, n) for at, n in enumerate(model.numbers) if n in fitted]
    replacements = Replacements({at: fitted[n] for at, n in places})
    todo = list(_todo(fitted, per)) if fitted else []
    rows = [{"scope": "none", "layer": -1, "head": -1, "replacement": "", **yardstick.effect({})._asdict()}]
    for done, (scope, layer, head, kind) in enumerate(todo, start=1):
        chosen = [(at, None if head < 0 else head) for at, n in places if layer in (-1, n)]
        effect = yardstick.effect(replacements.interventions(kind, chosen))
        rows.append({"scope": scope, "layer": layer, "head": head, "replacement": kind, **effect._asdict()})
        watch(done, len(todo))
    return pd.DataFrame(rows)


def _todo(fitted: Mapping[int, Moments], per: str) -> Iterator[tuple[str, int, int, Kind]]:
    for kind in (*REPLACEMENTS, *COMPARISONS):
        yield "all", -1, -1, kind
    for number, moments in fitted.items():
        if per == "layer":
            yield from (("layer", number, -1, kind) for kind in REPLACEMENTS)
        elif per == "head":
            yield from (("head", number, head, kind) for head in range(len(moments.mean)) for kind in REPLACEMENTS)
