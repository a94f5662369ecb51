"""Maps of queries and keys before the kernel (core, norm, rotation), and of the weighted values after it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.attention import rotary
from querykey.attention.expansion import core_matrix, signed_diagonal
from querykey.attention.sequence import Span
from querykey.layout import Layout

_EPSILON = 1e-6  # of the RMS norm


def apply_core(
    q: Float[Tensor, "batch groups length qk_dim"], core: Tensor, layout: Layout
) -> Float[Tensor, "batch heads length qk_dim"]:
    """q = (xW) C, each query head with its own core over its group's shared projection."""
    if layout.design.core == "signed":
        return q * signed_diagonal(layout, core)[:, None, :]
    cores = core_matrix(layout, core).unflatten(0, (q.shape[1], -1))  # groups, heads per group
    return torch.einsum("bgnc,grcd->bgrnd", q, cores).flatten(1, 2)


def exclusive(
    out: Float[Tensor, "batch heads length size"], own: Float[Tensor, "batch groups length size"]
) -> Float[Tensor, "batch heads length size"]:
    """Weighted values without their component along the value of their own position (2603.09078)."""
    unit = F.normalize(own, dim=-1).unsqueeze(2)
    grouped = out.unflatten(1, (own.shape[1], -1))
    exclusive: Tensor = (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).flatten(1, 2)
    return exclusive


def apply(
    tensor: Float[Tensor, "batch heads length qk_dim"], positions: Span | Tensor, gain: Tensor | None, layout: Layout
) -> Float[Tensor, "batch heads length qk_dim"]:
    """Norm, then rotation to their positions: the same for queries and for keys."""
    if layout.design.qknorm:
        if gain is not None:
            gain = gain.to(tensor.dtype)  # which differ under autocast
        tensor = F.rms_norm(tensor, tensor.shape[-1:], gain, _EPSILON)
    if layout.design.similarity == "cosine":
        tensor = F.normalize(tensor, dim=-1)
    if layout.frequencies is not None:
        tensor = rotary.rotate(tensor, layout.frequencies, positions)
    return tensor
