"""Measures of attention heads: symmetry of the scores, attention to itself, cycles of the map i → argmax_j."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear import argmax_cycles
from querykey.explorer.rounding import rounded
from querykey.models.trace import LayerTrace

THUMBNAIL = 32  # positions per side of a small attention map; longer texts are pooled


def measures(layer: LayerTrace, head: int) -> dict[str, Any]:
    """Of one head: ``symmetry``, ``self`` (mean weight on the diagonal), and ``longest`` (length of a cycle)."""
    scores, weights = layer.scores[:1, head], layer.weights[0, head]
    return {
        "symmetry": number(symmetry(scores)[0]),
        "self": number(weights.diagonal().mean()),
        "longest": int(argmax_cycles(weights).max()),
    }


def overview(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts of all layers (see `overview_of`) as one: measures of all heads, and their thumbnails."""
    found = {name: [value for part in layers for value in part[name]] for name in ("symmetry", "self", "longest")}
    places = [[layer, head] for layer, part in enumerate(layers) for head in range(len(part["symmetry"]))]
    thumbnails = torch.cat([part["thumbnails"] for part in layers])
    return found | {"heads": places, "thumbnails": rounded(thumbnails, 2)}


def overview_of(layer: LayerTrace) -> dict[str, Any]:
    """The measures of every head of a layer, and its attention maps pooled to `THUMBNAIL` positions."""
    weights = layer.weights[0]
    return {
        "symmetry": [number(value) for value in symmetry(layer.scores[0])],
        "self": [number(value) for value in weights.diagonal(dim1=-2, dim2=-1).mean(-1)],
        "longest": argmax_cycles(weights).amax(-1).tolist(),
        "thumbnails": F.adaptive_max_pool2d(weights[None], min(THUMBNAIL, weights.shape[-1]))[0],
    }


def cycles(whom: list[int]) -> list[list[int]]:
    """The cycles of a map from each position to another, each from the member that a path reaches first."""
    found = []
    seen = [0] * len(whom)  # the path that first came by, counted from 1
    for start in range(len(whom)):
        at, path = start, []
        while not seen[at]:
            seen[at] = start + 1
            path.append(at)
            at = whom[at]
        if seen[at] == start + 1:
            found.append(path[path.index(at) :])
    return found


def symmetry(scores: Float[Tensor, "heads length length"]) -> Float[Tensor, " heads"]:
    """Correlation of s_ij with s_ji over all pairs of different tokens: 1 where both directions always agree.

    0 for a text of one token, and for scores that are all alike.
    """
    length = scores.shape[-1]
    total = scores.sum((-2, -1), dtype=torch.double) - scores.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.double)
    mean = total / max(length * (length - 1), 1)  # of s_ij and of s_ji alike
    centred = scores - mean.to(scores.dtype)[:, None, None]
    centred.diagonal(dim1=-2, dim2=-1).zero_()
    spread = centred.square().sum((-2, -1), dtype=torch.double)
    product = (centred * centred.mT).sum((-2, -1), dtype=torch.double)
    return torch.where(spread > 1e-12, product / spread.clamp(min=1e-12), 0.0)


def number(value: Tensor) -> float:
    """A value as JSON has it, with far more digits than are printed, so that rounding it again gives the same."""
    return round(float(value), 7)
