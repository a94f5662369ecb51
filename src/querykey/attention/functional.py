"""Attention on plain tensors, through a fused kernel: `attend`."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from querykey.attention import checks, kernels, masks, modifiers
from querykey.attention.reference import check_tensors
from querykey.attention.scoring import Scoring
from querykey.attention.similarity import default_scale
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
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "*queries d_v"]:
    """softmax(Q Kᵀ / √d_k) V, or with another similarity. Vaswani et al., 1706.03762, equation 1.

    Args:
        q: (query, d_k), (batch, query, d_k) or (..., heads, query, d_k).
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
        softcap: scores are softcap · tanh(scores / softcap) (Gemma 2, 2408.00118).
        sinks: a score for each head of `q` that takes part in its softmax and reads no value (gpt-oss, 2508.10925).

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
        if mask.ndim > 4:
            mask = mask.expand(*shape[:-3], *mask.shape[-3:])
    scale = default_scale(similarity, q.shape[-1]) if scale is None else scale
    modifiers.check(softcap, sinks, q.shape[-3] if q.ndim > 3 else 1)
    scoring = Scoring(scale, similarity, causal, window, softcap=softcap)
    mask = None if mask is None else _to_four_dimensions(mask)
    queries, keys, values = map(_to_four_dimensions, (q, k, v))
    out = kernels.run(scoring.call(queries, keys, values, mask, dropout, sinks))
    return out.reshape(*q.shape[:-1], v.shape[-1])


def _to_four_dimensions(tensor: Tensor) -> Tensor:
    return tensor[(None,) * (4 - tensor.ndim)] if tensor.ndim <= 4 else tensor.flatten(0, -4)
