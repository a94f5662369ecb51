"""What the page draws, as plain values: one head on one text with one intervention, all heads at a glance, the effect.

Everything is computed by the model itself when it is asked for, and rounded to the digits that are printed.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from querykey.bilinear import argmax_cycles
from querykey.explorer.cache import Cache
from querykey.explorer.completion import lost
from querykey.explorer.matrices import described
from querykey.explorer.measures import cycles, measures, overview, overview_of
from querykey.explorer.outcome import Outcome, difference, outcome
from querykey.explorer.rounding import SCORE_DIGITS, WEIGHT_DIGITS, rounded
from querykey.explorer.subjects import Scope, Shown, Subject
from querykey.explorer.tokenizer import Encoded
from querykey.models.intervention import Interventions
from querykey.models.trace import LayerTrace, TracedModel

RUN_BYTES = 200_000_000  # of the runs that are kept, so that another head costs nothing
WEIGHT_BYTES = 8  # of a score and its attention weight
OUTCOMES = 256  # that are kept; a text of 512 tokens takes 50 kB


@dataclass(frozen=True)
class Focus:
    """What is looked at: a head, an intervention, and where it is made (`scope`: that head, its layer, or all heads).

    Without `masked`, attention weights are those that the head's scores give without a mask.
    """

    layer: int = 0
    head: int = 0
    intervention: Shown = "trained"
    scope: Scope = "head"
    masked: bool = True


class _Run(NamedTuple):
    """One run of the model: some layers in full, all layers at a glance where they were asked for, and the outcome."""

    layers: dict[int, LayerTrace]
    overviews: list[dict[str, Any]]
    outcome: Outcome


class Viewer:
    """The views of one subject. The model runs once at a time, for all requests."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._runs: Cache[_Run] = Cache(RUN_BYTES, _bytes)
        self._outcomes: Cache[Outcome] = Cache(OUTCOMES)
        self._lock = threading.RLock()

    def about(self) -> dict[str, Any]:
        """The model: its layers, the interventions that it can have, and what to show first."""
        subject, converted = self.subject, self.subject.converted
        designs = {"converted": converted.design} if converted else {}
        return {
            "kind": subject.purpose,
            "causal": subject.model.causal,
            "layers": [{"heads": layer.query.heads, "positions": layer.positions} for layer in subject.model.layers],
            "interventions": [described(name, designs.get(name, subject.design)) for name in subject.interventions],
            "converted": converted.names if converted else None,
            "example": subject.example,
            "first": self._first(),
        }

    def _first(self) -> list[int]:
        """The head to show first: that with the longest cycle on the example, where no mask hides it."""
        lengths: list[list[int]] = []
        ids = self.subject.tokenizer.encode(self.subject.example).ids
        self.subject.model.trace(
            ids, see=lambda layer: lengths.append(argmax_cycles(layer.scores[0]).amax(-1).tolist())
        )
        longest = max(map(max, lengths))
        return next([layer, heads.index(longest)] for layer, heads in enumerate(lengths) if longest in heads)

    def look(self, text: str, focus: Focus, glance: bool = False) -> dict[str, Any]:
        """One head with one intervention, and all heads at a `glance`.

        Raises ValueError for a head, an intervention or a text that cannot be shown.
        """
        encoded = self.subject.tokenizer.encode(text)
        run = self._run(encoded, focus, glance)
        head = self._head(_seen(run.layers[focus.layer], focus), focus.head) | self._predictions(run.outcome)
        if focus.intervention != "trained":
            trained = self._run(encoded, replace(focus, intervention="trained"))
            before = measures(_seen(trained.layers[focus.layer], focus), focus.head)
            head["before"] = before | self._predictions(trained.outcome)
        found = {
            "tokens": list(encoded.tokens),
            "special": list(encoded.special),
            "unknown": encoded.unknown,
            "cut": encoded.cut,
            "targets": self._targets(encoded),
            "head": {"layer": focus.layer, "head": focus.head, **head},
        }
        return found | ({"overview": overview(run.overviews)} if glance else {})

    def effect(self, text: str, focus: Focus) -> dict[str, Any]:
        """How much the intervention changes what comes out of the model."""
        encoded = self.subject.tokenizer.encode(text)
        trained = replace(focus, intervention="trained")
        return difference(self._outcome(encoded, trained), self._outcome(encoded, focus))

    def tied(self, text: str, focus: Focus) -> dict[str, Any]:
        """What one matrix would lose of the scores that the causal mask leaves: at the head's width, and at twice that.

        Empty for a head without a causal mask.
        """
        encoded = self.subject.tokenizer.encode(text)
        layer = self._run(encoded, Focus(focus.layer, focus.head)).layers[focus.layer]
        allowed, scores, width = _allowed(layer, focus.head), layer.scores[0, focus.head], layer.query.shape[-1]
        if allowed is None or _mask(allowed) != "causal":
            return {}
        visible = allowed.tril(-1)
        parts = [round(lost(scores, visible, size), 4) for size in (width, 2 * width)]
        return {"width": width, "scores": int(visible.sum()), "lost": parts}

    def _outcome(self, encoded: Encoded, focus: Focus) -> Outcome:
        """What comes out of the model."""
        with self._lock:
            return self._outcomes.find(self._key(encoded, focus)) or self._run(encoded, focus).outcome

    def _run(self, encoded: Encoded, focus: Focus, glance: bool = False) -> _Run:
        """The model on a text with an intervention, at least with the layer in focus, and all layers at a glance."""
        key = self._key(encoded, focus)
        with self._lock:
            run = self._runs.find(key)
            if run is None or focus.layer not in run.layers or (glance and not run.overviews):
                run = self._made(encoded, focus, glance)
                _return_freed_memory()
                self._runs.keep(key, run)
                self._outcomes.keep(key, run.outcome)
            return run

    def _made(self, encoded: Encoded, focus: Focus, glance: bool) -> _Run:
        layers: dict[int, LayerTrace] = {}
        overviews: list[dict[str, Any]] = []
        model, interventions = self._changed(focus)
        heads = sum(layer.query.heads for layer in model.layers)
        whole = heads * len(encoded.tokens) ** 2 * WEIGHT_BYTES < RUN_BYTES / 4  # else only the layer in focus
        running = iter(range(len(model.layers)))

        def see(layer: LayerTrace) -> None:
            number = next(running)
            if whole or number == focus.layer:
                layers[number] = layer
            if glance:
                overviews.append(overview_of(layer))

        trace = model.trace(encoded.ids, interventions, see=see)
        return _Run(layers, overviews, outcome(trace, self.subject.tokenizer.targets(encoded.ids)))

    def _changed(self, focus: Focus) -> tuple[TracedModel, Interventions]:
        """The model that runs, and the interventions in it."""
        heads, subject = self._heads(focus), self.subject
        if focus.intervention != "converted":
            return subject.model, subject.replacements.interventions(focus.intervention, heads)
        if subject.converted is None:
            raise ValueError("no converted model is beside this one; open it with --against ORIGINAL")
        return subject.converted.model, {}

    def _key(self, encoded: Encoded, focus: Focus) -> Hashable:
        """What two runs that come out the same have in common."""
        heads = () if focus.intervention in ("trained", "converted") else tuple(self._heads(focus))
        return tuple(encoded.ids.flatten().tolist()), focus.intervention, heads

    def _heads(self, focus: Focus) -> list[tuple[int, int]]:
        layers = self.subject.model.layers
        if not 0 <= focus.layer < len(layers) or not 0 <= focus.head < layers[focus.layer].query.heads:
            raise ValueError(f"there is no head {focus.head} in layer {focus.layer} of this model")
        if focus.scope == "head":
            return [(focus.layer, focus.head)]
        chosen = range(len(layers)) if focus.scope == "all" else [focus.layer]
        return [(layer, head) for layer in chosen for head in range(layers[layer].query.heads)]

    def _head(self, layer: LayerTrace, head: int) -> dict[str, Any]:
        """Everything of one head, from what it gets to what it gives."""
        q, k, v = (tensor[0, head] for tensor in (layer.query, layer.key, layer.value))
        scores, weights, allowed = layer.scores[0, head], layer.weights[0, head], _allowed(layer, head)
        whom = weights.argmax(-1).tolist()
        vectors = {"x": layer.x[0], "q": q, "k": k, "v": v, "z": weights @ v}
        return {
            **{name: rounded(vector) for name, vector in vectors.items()},
            "scores": rounded(scores, SCORE_DIGITS),
            "weights": rounded(weights, WEIGHT_DIGITS, allowed),
            "mask": _mask(allowed),
            "factor": _factor(q, k, scores),
            "whom": whom,
            "cycles": cycles(whom),
            **measures(layer, head),
        }

    def _predictions(self, out: Outcome) -> dict[str, Any]:
        """The likeliest answers of each token with their probabilities; nothing of a model without answers."""
        if out.answers is None:
            return {}
        names = iter(self.subject.tokenizer.answers(out.answers.best.flatten()))
        shares = out.answers.probabilities.tolist()
        return {"predictions": [[[next(names), round(share, 4)] for share in row] for row in shares]}

    def _targets(self, encoded: Encoded) -> list[str | None] | None:
        targets = self.subject.tokenizer.targets(encoded.ids)
        if targets is None:
            return None
        names = self.subject.tokenizer.answers(targets.clamp(min=0))
        return [name if target >= 0 else None for name, target in zip(names, targets.tolist(), strict=True)]


def _return_freed_memory() -> None:
    """Ask glibc to return freed memory: in a server's threads it keeps about 13 MB for each run of a 135M model."""
    with suppress(AttributeError, OSError, TypeError):  # where there is another C library
        ctypes.CDLL(None).malloc_trim(0)


def _seen(layer: LayerTrace, focus: Focus) -> LayerTrace:
    """The layer as it is, or with the weights that its scores give without a mask."""
    return layer if focus.masked else replace(layer, allowed=None, weights=layer.scores.softmax(-1))


def _factor(q: Tensor, k: Tensor, scores: Tensor) -> dict[str, Any]:
    """What times the product, or the cosine, of query and key is the score; or some other way."""
    products = {"product": q @ k.mT, "cosine": F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT}
    for kind, product in products.items():
        largest = product.abs().argmax()
        factor = float(scores.flatten()[largest] / product.flatten()[largest]) if product.any() else 1.0
        if torch.allclose(product * factor, scores, rtol=1e-3, atol=1e-3):
            return {"kind": kind, "number": factor}
    return {"kind": "other", "number": None}


def _allowed(layer: LayerTrace, head: int) -> Bool[Tensor, "length length"] | None:
    """Who may attend to whom; None where every token may attend to every other."""
    if layer.allowed is None:
        return None
    allowed: Tensor = layer.allowed[0].expand(layer.weights.shape[1:])[head]
    return None if bool(allowed.all()) else allowed


def _mask(allowed: Bool[Tensor, "length length"] | None) -> str:
    """What the mask hides: nothing ("none"), what comes later ("causal"), the token itself ("self"), or "some"."""
    if allowed is None:
        return "none"
    if not allowed.triu(1).any():
        return "causal"
    return "self" if bool((allowed != torch.eye(len(allowed), dtype=torch.bool)).all()) else "some"


def _bytes(run: _Run) -> int:
    tensors = [x for layer in run.layers.values() for x in vars(layer).values() if isinstance(x, Tensor)]
    return sum(x.nbytes for x in [*tensors, *(part["thumbnails"] for part in run.overviews)])
