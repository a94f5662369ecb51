"""The similarity of queries and keys: dot, cosine and l2, each as a map onto the dot product that kernels compute.

    dot      scale · q·k                    scale = 1/√d_k
    cosine   scale · q·k / (‖q‖ ‖k‖)        scale = √d_k
    l2       −scale · ‖q − k‖² / 2          scale = 1/√d_k

Since −‖q − k‖²/2 = q·k − ‖k‖²/2 − ‖q‖²/2, and terms that all keys have in common do not change the softmax, l2 is the
dot product of [q, 1] with [k, −‖k‖²/2].
"""

from __future__ import annotations

import math
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from querykey.design import Similarity

_HALF = (torch.float16, torch.bfloat16)
_FACTORS = (256.0, 1.0, 1 / 256)  # of the parts of a norm: float16 ends at 65504


def default_scale(similarity: Similarity, size: int) -> float:
    """The factor of a similarity for queries and keys of this size, d_k.

    Raises:
        ValueError: if the similarity is unknown.
    """
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {', '.join(get_args(Similarity))}, not {similarity!r}")
    return math.sqrt(size) if similarity == "cosine" else 1 / math.sqrt(size)


def scores(q: Tensor, k: Tensor, similarity: Similarity, scale: float) -> Tensor:
    """The definition itself: (..., query, d_k) and (..., key, d_k) to (..., query, key), in float32 at least."""
    if q.dtype in _HALF:
        q, k = q.float(), k.float()
    if similarity == "cosine":
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    products = q @ k.mT
    if similarity == "l2":
        products = products - (q.square().sum(-1).unsqueeze(-1) + k.square().sum(-1).unsqueeze(-2)) / 2
    return products * scale


def as_dot_product(q: Tensor, k: Tensor, similarity: Similarity, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Queries and keys whose dot product is the similarity, without its scale.

    Up to a constant per query, which does not change a softmax, unless it must be `exact`.
    """
    match similarity:
        case "dot":
            return q, k
        case "cosine":
            return F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        case "l2":
            factors, norms = _norms(k)
            of_q, of_k = [q, _rows(factors, q)], [k, *norms]
            if exact:
                factors, norms = _norms(q)
                of_q, of_k = [*of_q, *norms], [*of_k, _rows(factors, k)]
            return torch.cat(of_q, -1), torch.cat(of_k, -1)


def _rows(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(numbers).expand(*like.shape[:-1], -1)


def _norms(k: Tensor) -> tuple[tuple[float, ...], list[Tensor]]:
    """Factors, and numbers for each row, (..., row, 1), whose sum of products is −‖k‖²/2.

    In half precision three numbers carry the digits of a float32 norm: rounded to one, it would be off by whole units.
    """
    if k.dtype not in _HALF:
        return (1.0,), [k.square().sum(-1, keepdim=True) / -2]
    rest = k.float().square().sum(-1, keepdim=True) / -2
    parts: list[Tensor] = []
    for factor in _FACTORS:
        part = (rest / factor).to(k.dtype)
        rest = (rest - part * factor).detach()  # the first part has the gradient of all
        parts.append(part)
    return _FACTORS, parts
