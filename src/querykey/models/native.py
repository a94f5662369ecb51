"""querykey's own small Transformers with their attention open, as `inspection.live` opens those of transformers.

Each attention layer is computed anew from its plain weights, by the formula, and its result put in place of the layer's
own, so that every design can be seen and changed: a shared matrix, a core, a mask, another similarity.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querykey.attention import masks, reference, rotary, similarity
from querykey.attention.layer import SelfAttention
from querykey.checkpoint import HeadMap, Projection, Rotary
from querykey.models import intervention as changing
from querykey.models.huggingface import LayerRun, Run
from querykey.models.intervention import Change
from querykey.transformer import Transformer

EPSILON = 1e-6  # of the RMS norm of queries and keys, as in SelfAttention


class OwnModel:
    """A trained `Transformer` to look into; `layers`, `causal` and `run` as in `inspection.live.LiveModel`."""

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval().requires_grad_(False)
        self.causal = model.attentions[0].causal
        self.layers = tuple(_head_map(number, layer) for number, layer in enumerate(model.attentions))
        self._lock = threading.Lock()  # hooks belong to the model, not to a run
        self.longest = None if model.positions is None else model.length

    @torch.no_grad()
    def run(
        self, ids: Int[Tensor, "batch length features"], changes: Mapping[tuple[int, int], Change] | None = None
    ) -> Run:
        """The model on these symbols, with heads (layer, head) changed."""
        seen: list[LayerRun] = []
        kept: list[Tensor] = []

        def replaced(number: int, layer: SelfAttention, x: Tensor) -> Tensor:
            mine = {head: change for (at, head), change in (changes or {}).items() if at == number}
            shown, output = _attention(layer, self.layers[number], x, mine)
            seen.append(shown)
            return output

        with self._lock:
            handles = [self.model.norm.register_forward_hook(lambda _, __, hidden: kept.append(hidden))]
            for number, layer in enumerate(self.model.attentions):
                hook = lambda module, given, _, number=number: replaced(number, module, given[0])  # noqa: E731
                handles.append(layer.register_forward_hook(hook))
            try:
                logits = self.model(ids)
            finally:
                for handle in handles:
                    handle.remove()
        return Run(kept[0], logits, tuple(seen))

    def shapes(self, layer: int) -> tuple[int, ...]:
        """(dim, head size) of W_Q."""
        return tuple(self.model.attentions[layer].weights().W_Q.shape[1:])


def _attention(
    layer: SelfAttention, layer_map: HeadMap, x: Float[Tensor, "batch length dim"], changes: Mapping[int, Change]
) -> tuple[LayerRun, Float[Tensor, "batch length dim"]]:
    """softmax(s(q, k)) v W_O of one layer, by the formula, with heads changed."""
    weights, design = layer.weights(), layer.design
    q, k, v = changing.apply(changes, layer_map, x, _queries_keys_values(layer, x))
    temperature = 1.0 if weights.temperature is None else weights.temperature[:, None, None]
    if design.similarity == "cosine":  # of which q and k come normalised
        scores = temperature * (q @ k.mT)
    else:
        scores = similarity.scores(q, k, design.similarity, layer.layout.qk_dim**-0.5)
    for head, change in changes.items():
        if change.cosine is not None:
            scores[:, head] = changing.cosine(q[:, head], k[:, head], change.cosine)
    allowed = _allowed(layer, scores, [head for head, change in changes.items() if change.self_mask])
    pattern = reference.masked_softmax(scores, allowed)
    heads = reference.weighted_sum(pattern, v)
    output = torch.einsum("bhnv,hvd->bnd", heads, weights.W_O)
    shown = LayerRun(x, q, k, v, scores, allowed, pattern)
    return shown, output if weights.b_O is None else output + weights.b_O


def _queries_keys_values(layer: SelfAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, heads, length, size) each, as they meet: normalised and rotated as the design says."""
    w, design = layer.weights(), layer.design

    def projected(W: Tensor, b: Tensor | None) -> Tensor:
        found = torch.einsum("bnd,hds->bhns", x, W)
        found = found if b is None else found + b[:, None]
        return reference.repeat_heads(found, found.new_empty(1, layer.layout.heads, 1, 1))

    q, k, v = projected(w.W_Q, w.b_Q), projected(w.W_K, w.b_K), projected(w.W_V, w.b_V)
    if design.qknorm:
        q, k = (F.rms_norm(t, t.shape[-1:], gain, EPSILON) for t, gain in ((q, w.q_gain), (k, w.k_gain)))
    if design.similarity == "cosine":
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    if layer.layout.rotary:
        angle = rotary.angles(0, x.shape[1], q.shape[-1])
        q, k = rotary.rotate(q, angle), rotary.rotate(k, angle)
    return q, k, v


def _allowed(layer: SelfAttention, scores: Tensor, heads: list[int]) -> Bool[Tensor, "..."] | None:
    """Who may attend to whom; the diagonal is closed where the design or one of `heads` has a self-mask."""
    length = scores.shape[-1]
    mask = masks.combine(None, length, length, causal=layer.causal, selfmask=layer.design.selfmask)
    closed = masks.combine(mask, length, length, selfmask=True)
    if heads and closed is not None:
        mask = torch.ones(scores.shape[1:], dtype=torch.bool) if mask is None else mask.expand(scores.shape[1:]).clone()
        mask[heads] = closed
    return None if mask is None else mask.view(1, -1, length, length)


def _head_map(number: int, layer: SelfAttention) -> HeadMap:
    layout = layer.layout
    group = layout.heads // layout.kv_heads
    turning = None
    if layout.rotary:
        half = layout.qk_dim // 2
        pairs = torch.arange(half)
        turning = Rotary(torch.stack([pairs, pairs + half], 1), rotary.angles(1, 1, layout.qk_dim)[0])
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
