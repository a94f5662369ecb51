"""Attention as the formula has it, with an explicit softmax: what every faster path is held to.

Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V        Vaswani et al., 1706.03762, equation 1
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.attention import masks
from querykey.attention import similarity as similarities
from querykey.attention.modifiers import softmax_with_sinks
from querykey.design import Similarity


def attention_scores(
    q: Float[Tensor, "*queries d_k"],
    k: Float[Tensor, "*keys d_k"],
    similarity: Similarity = "dot",
    *,
    scale: float | None = None,
) -> Float[Tensor, "..."]:
    """How much each query likes each key: Q Kᵀ / √d_k, or another similarity.

    Args:
        q: (query, d_k), (batch, query, d_k) or (..., heads, query, d_k).
        k: (..., key, d_k), with the same leading dimensions; its heads may be fewer where they divide those of `q`.
        similarity: ``"dot"``: scale · q·k; ``"cosine"``: scale · cos(q, k); ``"l2"``: −scale · ‖q − k‖²/2.
        scale: 1/√d_k when not given, and √d_k for the cosine.

    Returns:
        (..., query, key).

    Raises:
        ValueError: if shapes or dtypes do not fit, or the similarity is unknown.
    """
    check_tensors(q, k)
    if scale is None:
        scale = similarities.default_scale(similarity, q.shape[-1])
    return similarities.scores(q, repeat_heads(k, q), similarity, scale).to(q.dtype)


def attention_weights(
    q: Float[Tensor, "*queries d_k"],
    k: Float[Tensor, "*keys d_k"],
    similarity: Similarity = "dot",
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "..."]:
    """The softmax of the scores over the keys: (..., query, key), each row summing to 1, or 0 where nothing is allowed.

    `causal`, `mask` and `window` are those of `attend`.
    """
    masks.check_window(window, causal)
    check_tensors(q, k)
    if scale is None:
        scale = similarities.default_scale(similarity, q.shape[-1])
    raw = similarities.scores(q, repeat_heads(k, q), similarity, scale)
    if mask is not None:
        masks.check(mask, raw.shape)
    mask = masks.combine(mask, *raw.shape[-2:], causal=causal, window=window, device=raw.device)
    return masked_softmax(raw, mask).to(q.dtype)


def masked_softmax(raw: Tensor, mask: Tensor | None, sinks: Tensor | None = None) -> Tensor:
    """Softmax over the last axis of scores under a mask; a row with nothing allowed gives zeros, and no NaN."""
    if mask is None:
        return softmax_with_sinks(raw, sinks)
    open_ = masks.allowed(mask)
    if mask.dtype != torch.bool:
        raw = raw + mask.masked_fill(~open_, 0.0)
    some = open_.any(-1, keepdim=True)
    return softmax_with_sinks(raw.masked_fill(~open_ & some, float("-inf")), sinks) * some


def weighted_sum(weights: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """(..., query, key) and (..., key, d_v) to (..., query, d_v), dropping weights with probability `dropout`."""
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    heads = weights.shape[-3] if weights.ndim > 2 else 1
    return weights @ (v if v.ndim < 3 or v.shape[-3] == heads else v.repeat_interleave(heads // v.shape[-3], -3))


def repeat_heads(k: Tensor, q: Tensor) -> Tensor:
    """Grouped keys given to each of their query heads: query head h reads key head h // group."""
    if k.ndim < 3 or k.shape[-3] == q.shape[-3]:
        return k
    return k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)


def check_tensors(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
    """Refuse queries, keys and values that do not belong together.

    Raises:
        ValueError: with what was expected and what came.
    """
    named = {"q": q, "k": k} | ({} if v is None else {"v": v})
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items())
    if any(tensor.ndim < 2 or tensor.ndim != q.ndim for tensor in named.values()):
        raise ValueError(
            "expected tensors of one rank: (length, size), (batch, length, size) or (…, heads, length, size), "
            f"got {shapes}"
        )
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"queries and keys must have the same size, got {shapes}")
    if v is not None and v.shape[:-1] != k.shape[:-1]:
        raise ValueError(f"each key needs one value, so k and v may differ in their last size only, got {shapes}")
    if any(tensor.dtype != q.dtype or not tensor.is_floating_point() for tensor in named.values()):
        dtypes = ", ".join(f"{name} {tensor.dtype}" for name, tensor in named.items())
        raise ValueError(f"expected one floating point dtype, got {dtypes}")
    grouped = q.ndim > 3 and k.shape[-3] > 0 and q.shape[-3] % k.shape[-3] == 0  # three dimensions have no heads
    if q.shape[:-3] != k.shape[:-3] or (q.shape[-3:-2] != k.shape[-3:-2] and not grouped):
        raise ValueError(f"keys must have the batch of the queries, and heads that divide theirs, got {shapes}")
