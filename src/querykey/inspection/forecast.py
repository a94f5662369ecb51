"""The forecast: what a model loses if heads are replaced by the closest ones that share weights.

Nothing is trained. The replacements of `models.replacements` are fitted to some pieces of text, and the output of the
model is compared on others. So a forecast is a lower bound of what a conversion with training can reach. Under rotary
positions `key_value` costs time when the model runs: keys are made of the shared tensor before they are rotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from querykey.models.resume import Start
from querykey.models.trace import Trace

REPLACEMENTS: tuple[Kind, ...] = ("tied", "signed", "core", "key_value")
COMPARISONS: tuple[Kind, ...] = ("copied", "uniform")
TOKENS, LOGITS = 1024, 1 << 25  # numbers of them in one batch at most

Per = Literal["none", "all", "layer", "head"]


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
    ids: Int[Tensor, "pieces length"]
    hidden: Tensor
    start: Start


class Yardstick:
    """The output of a model as it is on some pieces of text, with which others are compared.

    `watch` gets the trace of each batch, its number from 1, and the number of batches.
    """

    def __init__(
        self,
        model: HuggingFaceModel,
        ids: Int[Tensor, "pieces length"],
        watch: Callable[[Trace, int, int], object] = lambda trace, done, total: None,
    ) -> None:
        self.model, self.scored = model, False
        self._batches: list[_Batch] = []
        parts = batches(model, ids)
        for done, batch in enumerate(parts, start=1):
            trace, start = model.start(batch)
            self.scored = model.causal and trace.logits is not None
            self._batches.append(_Batch(batch, trace.hidden, start))
            watch(trace, done, len(parts))

    def effect(self, interventions: Interventions) -> Effect:
        """The effect of these interventions."""
        cosines, pooled, losses = [], [], []
        for batch in self._batches:
            found = self.model.output(batch.ids, interventions, batch.start, logits=self.scored)
            cosines.append(F.cosine_similarity(found.hidden, batch.hidden, dim=-1).flatten())
            pooled.append(F.cosine_similarity(found.hidden.mean(1), batch.hidden.mean(1), dim=-1))
            if self.scored and found.logits is not None:
                logits, following = found.logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten()
                losses.append(F.cross_entropy(logits, following, reduction="none"))
        perplexity = math.exp(torch.cat(losses).double().mean()) if losses else math.nan
        return Effect(float(torch.cat(cosines).mean()), float(torch.cat(pooled).mean()), perplexity)


def batches(model: HuggingFaceModel, ids: Int[Tensor, "pieces length"]) -> tuple[Tensor, ...]:
    """The pieces in batches that fit into memory with the logits of all their tokens."""
    vocabulary = int(model.model.config.get_text_config().vocab_size)
    found: tuple[Tensor, ...] = ids.split(max(1, min(TOKENS, LOGITS // vocabulary) // ids.shape[1]))
    return found


def forecast(
    yardstick: Yardstick,
    fitted: Mapping[int, Moments],
    *,
    per: Per = "all",
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """A row for every replacement of all heads at once, then of every layer or head.

    `fitted` has moments by the number of the layer in the checkpoint; layers that are used several times are replaced
    everywhere, and those that `fitted` leaves out nowhere. Columns ``scope`` ("none", "all", "layer", "head"),
    ``layer``, ``head`` (−1 where it is not one), ``replacement`` and those of `Effect`; the first row is the model as
    it is, and the only one where nothing has been fitted. ``module`` is that of the layer, or empty.
    """
    places = [(at, n) for at, n in enumerate(yardstick.model.numbers) if n in fitted]
    replacements = Replacements({at: fitted[n] for at, n in places})
    todo = list(_todo(fitted, per)) if fitted else []
    nothing = {"scope": "none", "module": "", "layer": -1, "head": -1, "replacement": ""}
    rows = [nothing | yardstick.effect({})._asdict()]
    for done, (scope, layer, head, kind) in enumerate(todo, start=1):
        chosen = [(at, None if head < 0 else head) for at, n in places if layer in (-1, n)]
        effect = yardstick.effect(replacements.interventions(kind, chosen))
        module, number = ("", -1) if layer < 0 else (fitted[layer].layer.name, fitted[layer].layer.number)
        what = {"scope": scope, "module": module, "layer": number, "head": head, "replacement": kind}
        rows.append(what | effect._asdict())
        watch(done, len(todo))
    return pd.DataFrame(rows)


def _todo(fitted: Mapping[int, Moments], per: Per) -> Iterator[tuple[str, int, int, Kind]]:
    """Scope, layer, head and kind of each replacement."""
    if per == "none":
        return
    for kind in (*REPLACEMENTS, *COMPARISONS):
        yield "all", -1, -1, kind
    for number, moments in fitted.items():
        if per == "layer":
            yield from (("layer", number, -1, kind) for kind in REPLACEMENTS)
        elif per == "head":
            yield from (("head", number, head, kind) for head in range(len(moments.mean)) for kind in REPLACEMENTS)
