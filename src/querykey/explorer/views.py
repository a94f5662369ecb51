"""What the page draws, as plain values: one head on one text in one setting, all heads at a glance, the effect.

Everything is computed by the model itself when it is asked for, and rounded to the digits that are printed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from querykey.bilinear import argmax_cycles
from querykey.explorer.notation import Encoded
from querykey.explorer.rounding import SCORE_DIGITS, WEIGHT_DIGITS, rounded
from querykey.explorer.subjects import SCOPES, Scope, Subject
from querykey.models.replacements import Kind as Setting
from querykey.models.trace import LayerTrace, Trace

KEPT = 150_000_000  # numbers in the patterns of the runs that are kept, so that another head costs nothing
THUMBNAIL = 48  # positions per side of a head at a glance; longer texts are pooled


@dataclass(frozen=True)
class Focus:
    """The head that is looked at, and what is changed: `scope` is that head, its layer, or all heads."""

    layer: int = 0
    head: int = 0
    setting: Setting = "trained"
    scope: Scope = "head"


class Viewer:
    """The views of one subject. Runs are made one at a time, whoever asks."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._runs: OrderedDict[Any, Trace] = OrderedDict()
        self._lock = threading.RLock()

    def about(self) -> dict[str, Any]:
        """The model: its layers, the settings that it has, and what to show first."""
        subject = self.subject
        layers = [
            {
                "heads": layer.query.heads,
                "keyHeads": layer.key.heads,
                "size": layer.query.size,
                "positions": layer.positions,
            }
            for layer in subject.model.layers
        ]
        return {
            "kind": subject.kind,
            "design": subject.design,
            "causal": subject.model.causal,
            "layers": layers,
            "settings": subject.settings,
            "example": subject.example,
            "first": self._telling_head(),
        }

    def _telling_head(self) -> list[int]:
        """The head to show first: of the example, the one that looks hardest at tokens neither near nor first."""
        if self.subject.first:
            return list(self.subject.first)
        run = self.run(self.subject.notation.encode(self.subject.example), Focus())

        def telling(place: tuple[int, int]) -> float:
            far = run.layers[place[0]].weights[0, place[1]].clone()
            far = far.tril(-2) + far.triu(2)
            far[:, 0] = 0
            return float(far.amax(-1).mean())

        layer, head = max(self._heads(Focus(scope="all")), key=telling)
        return [layer, head]

    def look(self, text: str, focus: Focus, overview: bool = True) -> dict[str, Any]:
        """One head in one setting, and with `overview` all heads.

        Raises ValueError for a head, a setting or a text that cannot be shown.
        """
        encoded = self.subject.notation.encode(text)
        run = self.run(encoded, focus)
        found: dict[str, Any] = {"tokens": list(encoded.tokens), "cut": encoded.cut}
        found["head"] = self._head(run.layers[focus.layer], focus)
        if focus.setting != "trained":
            trained = graph(self.run(encoded, Focus(focus.layer, focus.head)).layers[focus.layer], focus.head)
            found["head"]["before"] = {name: trained[name] for name in ("symmetry", "self", "longest")}
        if run.logits is not None:
            found["answers"] = self.subject.notation.answers(run.logits[0].argmax(-1))
            targets = self.subject.notation.targets(encoded.ids)
            found["targets"] = None if targets is None else self._target_names(targets)
        if overview:
            found["overview"] = glance(run)
        return found

    def effect(self, text: str, focus: Focus, scopes: Sequence[Scope] = SCOPES) -> dict[str, Any]:
        """How much the setting changes what comes out, if this head has it, its layer, or all heads."""
        encoded = self.subject.notation.encode(text)
        before = self.run(encoded, Focus(focus.layer, focus.head))
        found: dict[str, Any] = {}
        for scope in scopes:
            after = self.run(encoded, Focus(focus.layer, focus.head, focus.setting, scope))
            found[scope] = self._difference(encoded, before, after)
        return found

    def run(self, encoded: Encoded, focus: Focus) -> Trace:
        """The model on a text in a setting."""
        heads = self._heads(focus)
        key = (tuple(encoded.ids.flatten().tolist()), focus.setting, () if focus.setting == "trained" else tuple(heads))
        with self._lock:
            if key not in self._runs:
                changes = self.subject.switch.interventions(focus.setting, heads)
                self._runs[key] = self.subject.model.trace(encoded.ids, changes)
                while len(self._runs) > 2 and sum(map(_size, self._runs.values())) > KEPT:
                    self._runs.popitem(last=False)
            self._runs.move_to_end(key)
            return self._runs[key]

    def _heads(self, focus: Focus) -> list[tuple[int, int]]:
        layers = self.subject.model.layers
        if not 0 <= focus.layer < len(layers) or not 0 <= focus.head < layers[focus.layer].query.heads:
            raise ValueError(f"there is no head {focus.head} in layer {focus.layer} of this model")
        if focus.scope == "head":
            return [(focus.layer, focus.head)]
        chosen = range(len(layers)) if focus.scope == "all" else [focus.layer]
        return [(layer, head) for layer in chosen for head in range(layers[layer].query.heads)]

    def _head(self, layer: LayerTrace, focus: Focus) -> dict[str, Any]:
        """Everything of one head, from what it gets to what it gives."""
        q, k, v = (tensor[0, focus.head] for tensor in (layer.query, layer.key, layer.value))
        scores, pattern = layer.scores[0, focus.head], layer.weights[0, focus.head]
        factor, allowed = self._factor(q, k, scores, focus), _allowed(layer, focus.head)
        vectors = {"x": layer.x[0], "q": q, "k": k, "v": v, "z": pattern @ v}
        return {
            "layer": focus.layer,
            "head": focus.head,
            **{name: rounded(vector) for name, vector in vectors.items()},
            "scores": rounded(scores, SCORE_DIGITS),
            "weights": rounded(pattern, WEIGHT_DIGITS, allowed),
            "mask": _mask(allowed),
            "factor": factor,
            **graph(layer, focus.head),
        }

    def _factor(self, q: Tensor, k: Tensor, scores: Tensor, focus: Focus) -> dict[str, Any]:
        """What times the product, or the cosine, of query and key is the score; or some other way."""
        products = {"product": q @ k.mT, "cosine": F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT}
        for kind, product in products.items():
            largest = product.abs().argmax()
            number = float(scores.flatten()[largest] / product.flatten()[largest]) if product.any() else 1.0
            if torch.allclose(product * number, scores, rtol=1e-3, atol=1e-3):
                return {"kind": kind, "number": number}
        return {"kind": "other", "number": None}

    def _difference(self, encoded: Encoded, before: Trace, after: Trace) -> dict[str, Any]:
        """Of two runs on one text: the cosine of the sentence vectors, or what became of the answers."""
        if before.logits is None or after.logits is None:
            one, other = (run.hidden[0].mean(0) for run in (before, after))
            return {"cosine": _number(F.cosine_similarity(one, other, dim=0))}
        old, new = (run.logits[0].log_softmax(-1) for run in (before, after) if run.logits is not None)
        found: dict[str, Any] = {"same": _number((old.argmax(-1) == new.argmax(-1)).double().mean())}
        targets = self.subject.notation.targets(encoded.ids)
        if targets is not None and bool((targets >= 0).any()):
            known = targets >= 0
            for name, scores in (("before", old), ("after", new)):
                loss = F.nll_loss(scores[known], targets[known]) / np.log(2)
                right = (scores[known].argmax(-1) == targets[known]).double().mean()
                found[name] = {"bits": _number(loss), "right": _number(right)}
        return found

    def _target_names(self, targets: Tensor) -> list[str | None]:
        names = self.subject.notation.answers(targets.clamp(min=0))
        return [name if target >= 0 else None for name, target in zip(names, targets.tolist(), strict=True)]


def glance(run: Trace) -> dict[str, Any]:
    """All heads: their patterns, small, and for each the measures that they can be sorted by."""
    found: dict[str, Any] = {"heads": [], "symmetry": [], "self": [], "longest": []}
    small = []
    for number, layer in enumerate(run.layers):
        pattern = layer.weights[0]
        size = min(THUMBNAIL, pattern.shape[-1])
        small.append(F.adaptive_max_pool2d(pattern[None], size)[0])
        rings = argmax_cycles(pattern)
        found["heads"] += [[number, head] for head in range(len(pattern))]
        found["symmetry"] += _numbers(symmetry(layer.scores[0]))
        found["self"] += _numbers(pattern.diagonal(dim1=-2, dim2=-1).mean(-1))
        found["longest"] += rings.amax(-1).tolist()
    return found | {"patterns": rounded(torch.cat(small), 2)}


def graph(layer: LayerTrace, head: int) -> dict[str, Any]:
    """Who attends most to whom: for each token whom, and the rings that all paths end in; the measures of the head."""
    pattern, scores = layer.weights[0, head], layer.scores[0, head]
    whom = pattern.argmax(-1).tolist()
    rings: list[list[int]] = []
    state = [0] * len(whom)  # the walk that first came by, counted from 1
    for start in range(len(whom)):
        at, path = start, []
        while not state[at]:
            state[at] = start + 1
            path.append(at)
            at = whom[at]
        if state[at] == start + 1:
            rings.append(path[path.index(at) :])
    return {
        "whom": whom,
        "rings": rings,
        "longest": max(map(len, rings)),
        "symmetry": _numbers(symmetry(scores[None]))[0],
        "self": _number(pattern.diagonal().mean()),
    }


def symmetry(scores: Float[Tensor, "heads length length"]) -> Float[Tensor, " heads"]:
    """Correlation of s_ij with s_ji over all pairs of different tokens: 1 where both directions always agree.

    0 for a text of one token, and for scores that are all alike.
    """
    off = ~torch.eye(scores.shape[-1], dtype=torch.bool)
    here, there = (s[:, off].double() for s in (scores, scores.mT))
    here, there = (x - x.mean(-1, keepdim=True) if x.numel() else x for x in (here, there))
    spread = here.square().sum(-1)
    product = (here * there).sum(-1)
    return torch.where(spread > 1e-12, product / spread.clamp(min=1e-12), 0.0)


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


def _size(run: Trace) -> int:
    return sum(layer.weights.numel() for layer in run.layers)


def _number(value: Tensor) -> float:
    return round(float(value), 7)  # far more than is printed, so that rounding it again gives the same


def _numbers(values: Tensor) -> list[float]:
    return [_number(value) for value in values]
