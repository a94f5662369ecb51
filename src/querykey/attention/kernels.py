"""The fast path: `scaled_dot_product_attention` on arguments laid out so that a fused kernel takes them.

PyTorch falls back on its quadratic kernel without a word, for instance where values have another size than keys. Here
the arguments are first made to fit, and `backend_of` names what will run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from querykey.attention import masks


class Call(NamedTuple):
    """The arguments of one kernel call; `size` is that of the values before they were padded."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    dropout: float
    causal: bool
    scale: float
    size: int


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool,
    mask: Tensor | None,
    dropout: float,
    selfmask: bool = False,
) -> Call:
    """Arguments that a fused kernel takes, from (batch, heads, length, size); keys and values may be grouped.

    The kernels know `causal` only for as many queries as keys, and only without a mask; other cases become a mask.
    Queries, keys and values are padded with zeros to one size where theirs differ.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    simple = causal and bool(queries == keys) and mask is None and not selfmask
    if not simple:
        mask = masks.combine(mask, queries, keys, causal=causal, selfmask=selfmask, device=q.device)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    size, widest = v.shape[-1], max(q.shape[-1], v.shape[-1])
    if q.shape[-1] != size:
        if q.device.type != "cpu":
            widest = math.ceil(widest / 8) * 8  # the accelerators' kernels take multiples of eight
        q, k, v = (F.pad(tensor, (0, widest - tensor.shape[-1])) for tensor in (q, k, v))
    return Call(q, k, v, mask, dropout, simple, scale, size)


def run(call: Call) -> Tensor:
    """The attention of a prepared call: (batch, heads, query, size of the values)."""
    mask, none_left = call.mask, None
    if mask is not None and mask.device.type != "cpu":
        # Only some accelerator kernels give zeros where nothing is allowed: open such rows, and close them afterwards.
        none_left = ~masks.allowed(mask).any(-1, keepdim=True)
        mask = mask | none_left if mask.dtype == torch.bool else mask.masked_fill(none_left, 0.0)
    out = F.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=_expand(mask),
        dropout_p=call.dropout,
        is_causal=call.causal,
        scale=call.scale,
        enable_gqa=call.q.shape[1] != call.k.shape[1],
    )
    if none_left is not None:
        out = out.masked_fill(none_left, 0.0)
    return out if out.shape[-1] == call.size else out[..., : call.size]


def backend_of(call: Call) -> str:
    """The kernel that `run` will use: "flash", "efficient", "cudnn", or "math", the quadratic one."""
    # PyTorch has no public word for this; its own dispatcher answers, with the arguments that it will get.
    chosen = torch._fused_sdp_choice(
        call.q,
        call.k,
        call.v,
        _expand(call.mask),
        call.dropout,
        call.causal,
        scale=call.scale,
        enable_gqa=call.q.shape[1] != call.k.shape[1],
    )
    names = {
        SDPBackend.MATH: "math",
        SDPBackend.FLASH_ATTENTION: "flash",
        SDPBackend.EFFICIENT_ATTENTION: "efficient",
        SDPBackend.CUDNN_ATTENTION: "cudnn",
    }
    return names.get(SDPBackend(chosen), SDPBackend(chosen).name.lower())


def _expand(mask: Tensor | None) -> Tensor | None:
    """To four dimensions, which the fused CPU kernel wants."""
    return mask if mask is None else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
