"""Traces of our own `Transformer`, and interventions in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.attention.layer import SelfAttention
from querykey.checkpoint import HeadMap, Projection, Rotary
from querykey.models import intervention
from querykey.models.intervention import Intervention, Interventions, of_layer
from querykey.models.trace import Formula, LayerTrace, Trace, attend, forwards
from querykey.transformer import Transformer


class NativeModel:
    """A trained `Transformer` as a `TracedModel`. It is set to evaluation; its parameters need no gradient."""

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval().requires_grad_(False)
        self.causal = model.attentions[0].causal
        self.layers = tuple(_head_map(number, layer) for number, layer in enumerate(model.attentions))
        self._lock = threading.Lock()  # forward functions belong to the model, not to a trace

    @property
    def longest(self) -> int | None:
        """The number of learned positions; None where there are none."""
        return None if self.model.positions is None else self.model.length

    def trace(
        self,
        ids: Int[Tensor, "batch length features"],
        interventions: Interventions | None = None,
        *,
        see: Callable[[LayerTrace], None] | None = None,
    ) -> Trace:
        """The forward pass on these tokens, with interventions; see `TracedModel`."""
        intervention.check(interventions, self.layers)
        with self._lock:
            return trace(self.model, ids, interventions, see)


@torch.no_grad()
def trace(
    model: Transformer,
    ids: Int[Tensor, "batch length features"],
    interventions: Interventions | None = None,
    see: Callable[[LayerTrace], None] | None = None,
) -> Trace:
    """The forward pass of a `Transformer` on these tokens, in the mode and with the parameters that it has."""
    layers: list[LayerTrace] = []
    hidden: list[Tensor] = []
    functions: dict[torch.nn.Module, Callable[..., Tensor]] = {
        layer: _recording(layer, _head_map(number, layer), see or layers.append, of_layer(interventions, number))
        for number, layer in enumerate(model.attentions)
    }
    handle = model.norm.register_forward_hook(lambda _, __, output: hidden.append(output))
    try:
        with forwards(functions):
            logits = model(ids)
    finally:
        handle.remove()
    return Trace(hidden[0], logits, tuple(layers))


def _recording(
    layer: SelfAttention,
    layer_map: HeadMap,
    see: Callable[[LayerTrace], None],
    interventions: Mapping[int | None, Intervention],
) -> Callable[..., Tensor]:
    """The layer's forward function, which also hands its trace to `see`."""

    def forward(x: Float[Tensor, "batch length dim"], mask: Tensor | None = None, **_: None) -> Tensor:
        def attention(q: Tensor, k: Tensor, v: Tensor, scores: Callable[..., Tensor], mask: Tensor | None) -> Tensor:
            found = attend(layer_map, x, (q, k, v), Formula(scores, mask), interventions)
            see(found)
            return found.output

        return layer.forward_with(attention, x, mask)

    return forward


def _head_map(number: int, layer: SelfAttention) -> HeadMap:
    layout = layer.layout
    group = layout.heads // layout.kv_heads
    turning = None
    if layout.frequencies is not None:
        turning = Rotary(layout.frequencies.pairs, layout.frequencies.at(1))
    return HeadMap(
        name=f"blocks.{number}.attention",
        query=Projection(layout.heads, layout.qk_dim, ()),
        key=Projection(layout.kv_heads, layout.qk_dim, ()),
        value=Projection(layout.kv_heads, layout.head_dim, ()),
        output=None,
        key_head=tuple(head // group for head in range(layout.heads)),
        scaling=layout.qk_dim**-0.5,
        positions="rotary" if turning else "none",
        rotary=turning,
    )
