"""How alike a query and a key are: dot, cosine and l2, all three as maps onto the dot product that kernels compute.

    dot      scale · q·k                    scale = 1/√d_k
    cosine   scale · q·k / (‖q‖ ‖k‖)        scale = √d_k
    l2       −scale · ‖q − k‖² / 2          scale = 1/√d_k

Since −‖q − k‖²/2 = q·k − ‖k‖²/2 − ‖q‖²/2, and the softmax does not feel what is constant along the keys, l2 is the dot
product of [q, 1] with [k, −‖k‖²/2].
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from querykey.design import Similarity


def default_scale(similarity: Similarity, size: int) -> float:
    """The factor of a similarity for queries and keys of this size, d_k.

    Raises:
        ValueError: if the similarity is unknown.
    """
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {', '.join(get_args(Similarity))}, not {similarity!r}")
    return math.sqrt(size) if similarity == "cosine" else 1 / math.sqrt(size)


def scores(q: Tensor, k: Tensor, similarity: Similarity, scale: float) -> Tensor:
    """The definition itself: (..., query, d_k) and (..., key, d_k) to (..., query, key)."""
    if similarity == "cosine":
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    products = q @ k.mT
    if similarity == "l2":
        products = products - (q.square().sum(-1).unsqueeze(-1) + k.square().sum(-1).unsqueeze(-2)) / 2
    return products * scale


def as_dot_product(q: Tensor, k: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """Queries and keys whose dot product is the similarity, without its scale and up to a constant per query."""
    match similarity:
        case "dot":
            return q, k
        case "cosine":
            return F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        case "l2":
            return torch.cat([q, torch.ones_like(q[..., :1])], -1), torch.cat(
                [k, k.square().sum(-1, keepdim=True) / -2], -1
            )
