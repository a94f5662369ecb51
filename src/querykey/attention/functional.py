"""Attention on plain tensors, through a fused kernel: `attend`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from querykey.attention import checks, kernels, masks
from querykey.attention import similarity as similarities
from querykey.attention.reference import check_tensors
from querykey.design import Similarity


def attend(
    q: Float[Tensor, "*queries d_k"],
    k: Float[Tensor, "*keys d_k"],
    v: Float[Tensor, "*keys d_v"],
    *,
    similarity: Similarity = "dot",
    causal: bool = False,
    mask: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "*queries d_v"]:
    """softmax(Q Kᵀ / √d_k) V, or with another similarity. Vaswani et al., 1706.03762, equation 1.

    Args:
        q: (..., query, d_k); leading dimensions (none, batch, or batch and heads) are free.
        k: (..., key, d_k), with the same leading dimensions; its heads may be fewer where they divide those of `q`.
        v: (..., key, d_v), with the leading dimensions of `k`.
        similarity: ``"dot"``: scale · q·k; ``"cosine"``: scale · cos(q, k); ``"l2"``: −scale · ‖q − k‖²/2.
        causal: a query sees no later key; the last query is aligned to the last key.
        mask: boolean, True = may attend, or additive; broadcasts to (..., query, key). A query with nothing left
            gives zeros.
        window: with `causal`, a query sees this many keys at most: its own and those just before it (Mistral 7B,
            2310.06825, section 2).
        scale: 1/√d_k when not given, and √d_k for the cosine.
        dropout: the probability that a weight is dropped. It is applied whenever it is not 0.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit, the similarity is unknown, or the window is none.
    """
    check_tensors(q, k, v)
    checks.check_one_device(q=q, k=k, v=v, mask=mask)
    masks.check_window(window, causal)
    if mask is not None:
        shape = (*q.shape[:-1], k.shape[-2])
        masks.check(mask, shape)
        mask = mask.reshape(*(1,) * (len(shape) - mask.ndim), *mask.shape)  # its own leading axes, before ours
    missing = 4 - q.ndim
    if scale is None:
        scale = similarities.default_scale(similarity, q.shape[-1])
    q, k = similarities.as_dot_product(q, k, similarity)
    q, k, v = (_to_four_dimensions(tensor) for tensor in (q, k, v))
    mask = None if mask is None else _to_four_dimensions(mask)
    call = kernels.prepare(q, k, v, scale=scale, causal=causal, mask=mask, dropout=dropout, window=window)
    out = kernels.run(call)
    return out[(0,) * missing]


def _to_four_dimensions(tensor: Tensor) -> Tensor:
    return tensor[(None,) * (4 - tensor.ndim)]
