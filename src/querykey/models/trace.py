"""A trace: what a forward pass computed in each attention layer, and the attention function that records it.

    q, k, v → interventions → softmax(softcap(scores(q, k)) + bias + mask) → weights · v

`huggingface.py` and `native.py` run this function inside a transformers model and inside our own `Transformer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from querykey.attention import masks, reference
from querykey.checkpoint import HeadMap
from querykey.models.intervention import Intervention, Interventions, replaced, rescored, self_masked


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """One attention layer of one forward pass, with keys and values repeated for each query head.

    `x` is the layer's (normalised) input. `scores` are those before the mask, and `allowed` is None where every
    position may attend to every other. The rows of `weights` sum to 1, or to less where a model has attention sinks.
    `output` is `weights · value`, before W_O.
    """

    x: Float[Tensor, "batch length dim"]
    query: Float[Tensor, "batch heads length qk_dim"]
    key: Float[Tensor, "batch heads keys qk_dim"]
    value: Float[Tensor, "batch heads keys v_dim"]
    scores: Float[Tensor, "batch heads length keys"]
    allowed: Bool[Tensor, "#batch #heads #length keys"] | None
    weights: Float[Tensor, "batch heads length keys"]
    output: Float[Tensor, "batch heads length v_dim"]


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass: `hidden` states after the last layer, `logits` of a language model, and every layer.

    `layers` is empty where they were handed out one by one (see `TracedModel.trace`).
    """

    hidden: Float[Tensor, "batch length dim"]
    logits: Float[Tensor, "batch length vocabulary"] | None
    layers: tuple[LayerTrace, ...]


@runtime_checkable
class TracedModel(Protocol):
    """The interface of both adapters, `HuggingFaceModel` and `NativeModel`.

    `layers` are in the order of running, one that is used several times as often as that. `causal` says that a token
    has no effect on the outputs before it.
    """

    layers: tuple[HeadMap, ...]
    causal: bool

    @property
    def longest(self) -> int | None:
        """The largest number of tokens that the model can take; None where nothing says so."""
        ...

    def trace(
        self,
        ids: Int[Tensor, "batch length *features"],
        interventions: Interventions | None = None,
        *,
        see: Callable[[LayerTrace], None] | None = None,
    ) -> Trace:
        """The forward pass on these tokens, with interventions.

        `see` gets each layer as it has run, in place of the trace, which need not hold them all at once then.

        Raises ValueError for an intervention in a head that the model does not have, and CheckpointError for one on
        queries or keys whose rotation by positions cannot be undone.
        """
        ...


@dataclass(frozen=True, eq=False)
class Formula:
    """How a layer makes weights of queries and keys: softmax(softcap · tanh(scores(q, k) / softcap) + bias + mask).

    `mask` is boolean (True = may attend) or additive (−∞ = may not). `sinks` are one score per head that takes part in
    the softmax and attends to nothing (gpt-oss).
    """

    scores: Callable[[Tensor, Tensor], Tensor]
    mask: Tensor | None = None
    softcap: float | None = None
    bias: Tensor | None = None
    sinks: Float[Tensor, " heads"] | None = None


def attend(
    layer: HeadMap | None,
    x: Float[Tensor, "batch length dim"],
    qkv: tuple[Tensor, Tensor, Tensor],
    formula: Formula,
    interventions: Mapping[int | None, Intervention],
) -> LayerTrace:
    """Attention on (batch, heads, length, size) tensors by the formula, with the interventions in this layer.

    A `layer` is needed only for interventions.
    """
    query, key, value = qkv if layer is None else replaced(interventions, layer, x, qkv)
    scores = rescored(interventions, formula.scores(query, key), query, key)
    if formula.softcap is not None:
        scores = (scores / formula.softcap).tanh() * formula.softcap
    scores = scores if formula.bias is None else scores + formula.bias
    mask = self_masked(interventions, formula.mask, scores)
    weights = _softmax(scores, mask, formula.sinks)
    allowed = None if mask is None else masks.allowed(mask)[(None,) * (4 - mask.ndim)]
    return LayerTrace(x, query, key, value, scores, allowed, weights, weights @ value)


@contextmanager
def forwards(functions: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within, each of these modules computes with its function in place of `forward`."""
    try:
        for module, function in functions.items():
            module.forward = function
        yield
    finally:
        for module in functions:
            module.__dict__.pop("forward", None)


def _softmax(scores: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return reference.masked_softmax(scores, mask)
    column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    mask = None if mask is None else F.pad(mask, (0, 1), value=float(mask.dtype == torch.bool))
    return reference.masked_softmax(torch.cat([scores, column], -1), mask)[..., :-1]
