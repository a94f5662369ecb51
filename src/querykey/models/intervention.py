"""What can be different about one head of a running model: its queries, keys, values, its mask, its similarity.

Change(key=lambda head: head.query)         W_K := W_Q
Change(self_mask=True)                      no position attends to itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.checkpoint import CheckpointError, HeadMap, Projection
from querykey.models.rotation import rotate_pairs


class HeadInput(NamedTuple):
    """What one head gets: the layer's input, and its queries, keys and values as they are before the rotation."""

    x: Float[Tensor, "batch length dim"]
    query: Float[Tensor, "batch length qk_dim"]
    key: Float[Tensor, "batch length qk_dim"]
    value: Float[Tensor, "batch length v_dim"]


Map = Callable[[HeadInput], Tensor]


@dataclass(frozen=True, eq=False)
class Change:
    """What is different about one head.

    - `query`, `key`, `value`: what to use instead, (batch, length, size) each; queries and keys before the rotation by
      positions, values as they meet the pattern (DeepSeek-V4 rotates them). Those of grouped heads change for this
      query head alone.
    - `self_mask`: a position may not attend to itself unless it is the only one left.
    - `cosine`: scores are this number times the cosine of query and key.
    """

    query: Map | None = None
    key: Map | None = None
    value: Map | None = None
    self_mask: bool = False
    cosine: float | None = None


def by_weights(
    projection: Projection,
    W: Float[Tensor, "dim size"],
    b: Float[Tensor, " size"] | None = None,
    gain: Float[Tensor, " size"] | None = None,
) -> Map:
    """x W + b in place of what `projection` gives a head.

    Where that is normalised per head, W is meant as `LayerWeights` has it, with the `gain` (`LiveModel.gain`) and the
    centring folded in, and is divided by the rms of its own result. Raises CheckpointError where a normalisation runs
    over other heads too, or stands between two weights.
    """
    if not projection.norms:
        return lambda head: head.x @ W + (0 if b is None else b)
    (norm, *others), part = projection.norms, projection.parts[0]
    if others or part.norm is None or norm.size != projection.size or (norm.bias and part.bias) or gain is None:
        raise CheckpointError(
            "this layer normalises over more than one head, or between two weights, so that weights alone do not say "
            "what a head gets; give a function of the head's own queries and keys instead"
        )
    before, after = (0, b) if norm.bias and b is not None else (0 if b is None else b, 0)

    def normalised(head: HeadInput) -> Tensor:
        u = head.x @ W + before
        return u / (u / gain).square().mean(-1, keepdim=True).sqrt() + after

    return normalised


def apply(
    changes: Mapping[int, Change],
    layer: HeadMap,
    x: Float[Tensor, "batch length dim"],
    qkv: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (batch, heads, length, size) each, with those of the changed heads replaced.

    Raises CheckpointError where the rotation that they come with cannot be undone.
    """
    changes = {head: change for head, change in changes.items() if change.query or change.key or change.value}
    if not changes:
        return qkv
    if layer.positions == "other":
        raise CheckpointError(
            f"the queries and keys of {layer.name} depend on positions in a way that cannot be undone"
        )
    query, key, value = (tensor.clone() for tensor in qkv)
    for head, change in changes.items():
        q, k, v = (tensor[:, head] for tensor in qkv)
        seen = HeadInput(x, rotate_pairs(q, layer.rotary, -1), rotate_pairs(k, layer.rotary, -1), v)
        if change.query:
            query[:, head] = rotate_pairs(change.query(seen).to(q), layer.rotary, 1)
        if change.key:
            key[:, head] = rotate_pairs(change.key(seen).to(k), layer.rotary, 1)
        if change.value:
            value[:, head] = change.value(seen).to(v)
    return query, key, value


def cosine(
    query: Float[Tensor, "batch length size"], key: Float[Tensor, "batch length size"], temperature: float
) -> Float[Tensor, "batch length length"]:
    """Scores that do not see how long queries and keys are."""
    return temperature * (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT)


def self_masked(
    mask: Float[Tensor, "..."] | None, scores: Float[Tensor, "batch heads length length"], heads: list[int]
) -> Tensor | None:
    """The additive mask with the diagonal of these heads closed, in rows that leave something else."""
    if not heads:
        return mask
    closed = torch.finfo(scores.dtype).min
    mask = torch.zeros_like(scores) if mask is None else mask.expand_as(scores).clone()
    alone = (mask > closed / 2).sum(-1) <= 1
    for head in heads:
        diagonal = mask[:, head].diagonal(dim1=-2, dim2=-1)
        diagonal.masked_fill_(~alone[:, head], closed)
    return mask
