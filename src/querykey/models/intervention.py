"""An intervention: what is changed in one head, or in all heads of one layer, while a model runs.

{(2, 5): Intervention(key=lambda given: given.query)}     head 5 of layer 2: W_K := W_Q
{(2, None): Intervention(self_mask=True)}                 every head of layer 2: no position attends to itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.attention import masks
from querykey.checkpoint import CheckpointError, HeadMap
from querykey.models.rotation import rotated


class HeadInput(NamedTuple):
    """What an intervention gets: the layer's input, and queries, keys and values before the rotation by positions.

    For one head the shapes are (batch, length, size), for a whole layer (batch, heads, length, size) with keys and
    values repeated for each query head, and `x` is (batch, 1, length, dim).
    """

    x: Float[Tensor, "batch *one length dim"]
    query: Float[Tensor, "batch *heads length qk_dim"]
    key: Float[Tensor, "batch *heads length qk_dim"]
    value: Float[Tensor, "batch *heads length v_dim"]


Map = Callable[[HeadInput], Tensor]


@dataclass(frozen=True, eq=False)
class Intervention:
    """What is changed.

    - `query`, `key`, `value`: functions that return the tensor to use instead, of the same shape; queries and keys
      before the rotation by positions. Grouped keys and values change for the chosen query heads only.
    - `self_mask`: a position may not attend to itself unless nothing else is allowed.
    - `cosine`: scores are this factor times the cosine of query and key; one factor, or one per head of the layer.
    """

    query: Map | None = None
    key: Map | None = None
    value: Map | None = None
    self_mask: bool = False
    cosine: float | Float[Tensor, " heads"] | None = None


Interventions = Mapping[tuple[int, int | None], Intervention]
"""Interventions by (layer in the order of running, head); the head is None for all heads of the layer."""


def of_layer(interventions: Interventions | None, layer: int) -> dict[int | None, Intervention]:
    """The interventions in one layer by head, that on the whole layer first: those on single heads override it."""
    chosen = {head: one for (at, head), one in (interventions or {}).items() if at == layer}
    return {head: chosen[head] for head in sorted(chosen, key=lambda head: -1 if head is None else head)}


def check(interventions: Interventions | None, layers: tuple[HeadMap, ...]) -> None:
    """Raise ValueError if an intervention names a layer or head that the model does not have."""
    for layer, head in interventions or {}:
        if not (0 <= layer < len(layers) and 0 <= (head or 0) < layers[layer].query.heads):
            heads = " or ".join(map(str, sorted({layer.query.heads for layer in layers})))
            raise ValueError(
                f"there is no head {head} in layer {layer}: there are {len(layers)} layers of {heads} heads, "
                "counted from 0"
            )


def replaced(
    interventions: Mapping[int | None, Intervention],
    layer: HeadMap,
    x: Float[Tensor, "batch length dim"],
    qkv: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (batch, heads, length, size) each, after the interventions in their layer.

    Raises CheckpointError where the rotation by positions cannot be undone.
    """
    chosen = {head: one for head, one in interventions.items() if one.query or one.key or one.value}
    if not chosen:
        return qkv
    if layer.positions == "other":
        raise CheckpointError(
            f"the queries and keys of {layer.name} depend on positions in a way that cannot be undone"
        )
    query, key, value = (tensor.clone() for tensor in qkv)
    for head, one in chosen.items():
        at = slice(None) if head is None else head
        q, k, v = (tensor[:, at] for tensor in qkv)
        before = rotated(q, layer.rotary, -1), rotated(k, layer.rotary, -1)
        given = HeadInput(x[:, None] if head is None else x, *before, v)
        if one.query:
            query[:, at] = rotated(one.query(given).to(q), layer.rotary)
        if one.key:
            key[:, at] = rotated(one.key(given).to(k), layer.rotary)
        if one.value:
            value[:, at] = one.value(given).to(v)
    return query, key, value


def rescored(
    interventions: Mapping[int | None, Intervention],
    scores: Float[Tensor, "batch heads length keys"],
    query: Float[Tensor, "batch heads length size"],
    key: Float[Tensor, "batch heads keys size"],
) -> Float[Tensor, "batch heads length keys"]:
    """The scores, with those of the heads that are to use the cosine in their place."""
    for head, one in interventions.items():
        if one.cosine is not None:
            at = slice(None) if head is None else head
            factor = one.cosine[:, None, None] if isinstance(one.cosine, Tensor) else one.cosine
            cosines = F.normalize(query[:, at], dim=-1) @ F.normalize(key[:, at], dim=-1).mT
            scores = scores.clone()
            scores[:, at] = (factor * cosines).to(scores)
    return scores


def self_masked(
    interventions: Mapping[int | None, Intervention],
    mask: Tensor | None,
    scores: Float[Tensor, "batch heads length keys"],
) -> Tensor | None:
    """The mask, boolean or additive, without the diagonal of the heads that may not attend to themselves."""
    heads = [head for head, one in interventions.items() if one.self_mask]
    if not heads:
        return mask
    closed = masks.combine(mask, *scores.shape[-2:], selfmask=True, device=scores.device)
    assert closed is not None  # a self-mask hides something
    chosen = torch.zeros(scores.shape[1], 1, 1, dtype=torch.bool, device=scores.device)
    for head in heads:
        chosen[slice(None) if head is None else head] = True
    everywhere = torch.ones((), dtype=torch.bool, device=scores.device)
    return torch.where(chosen, closed, everywhere if mask is None else mask)
