"""The fast path: `scaled_dot_product_attention` on arguments laid out so that a fused kernel takes them.

PyTorch falls back to its quadratic kernel silently, for instance where values have another size than keys. Here the
arguments are first made to fit, and `backend_of` names what will run. On a CPU, causal attention over some hundred
positions is computed by blocks of rows where that is faster (`blocked.py`). A single query, as in decoding, is computed
by two matrix products where padding or repeating all cached keys and values would cost more than the attention. On
CUDA, windows, packed sequences and chunks behind a cache take a kernel that needs no mask (`varlen.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from querykey.attention import blocked, masks, reference, varlen
from querykey.attention.modifiers import NONE, Modifiers, capped
from querykey.attention.tracing import wants_plain

Route = Literal["fused", "blocked", "products", "varlen"]

# Lengths at which blocks of rows are faster on a CPU, and what they may keep for that: benchmarks/blocked.py
BLOCKED_TRAINING = range(256, 2049)
BLOCKED_FORWARD = range(256, 513)
BLOCKED_BYTES = 2**25  # of weights, where the fused kernel would keep none
BLOCKED_WINDOW = 256  # and longer: the fused kernel computes all scores of a masked window, benchmarks/windows.py

_force_blocks: bool | None = None


@contextmanager
def forcing_blocks(force: bool | None) -> Iterator[None]:
    """Use blocks of rows wherever possible (True), never (False), or where they are faster (None)."""
    global _force_blocks
    before, _force_blocks = _force_blocks, force
    try:
        yield
    finally:
        _force_blocks = before


class Call(NamedTuple):
    """The arguments of one kernel call; `size` is that of the values before they were padded.

    `route` says what computes it: the "fused" kernel of PyTorch, "blocked" rows, which apply the self-mask and the
    window by themselves, the "products" of the formula, or the "varlen" kernel, which applies the window and takes the
    `lengths` of packed sequences.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    dropout: float
    causal: bool
    scale: float
    size: int
    route: Route = "fused"
    selfmask: bool = False
    window: int | None = None
    modifiers: Modifiers = NONE
    lengths: Sequence[int] | None = None


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
    window: int | None = None,
    modifiers: Modifiers = NONE,
) -> Call:
    """Arguments that a kernel takes, from (batch, heads, length, size); keys and values may be grouped.

    The kernels know `causal` only for as many queries as keys, and only without a mask; other cases become a mask.
    Queries, keys and values are padded with zeros to one size where theirs differ. Keys before the first query's
    `window` are left out, and a window that hides nothing is dropped. Values may have fewer heads than keys have, as
    latents do; these take the products.
    """
    if window is not None:
        k, v, mask, window = _within(window, q, k, v, mask)
    queries, keys = q.shape[-2], k.shape[-2]
    if causal and mask is None and not dropout and queries == keys and _by_blocks(q, k, v, window, modifiers):
        return Call(q, k, v, None, 0.0, True, scale, v.shape[-1], "blocked", selfmask, window, modifiers)
    masked = causal and queries > 1 and (window is not None or queries != keys)  # by the fused kernel
    if masked and mask is None and not selfmask and _by_varlen(q, k, v, dropout, modifiers):
        return Call(q, k, v, None, 0.0, True, scale, v.shape[-1], "varlen", window=window)
    products, slopes = modifiers.needs_scores or _by_products(q, k, v, dropout), modifiers.slopes
    plain = mask is None and not selfmask and window is None and slopes is None and not products
    simple = False  # by a branch: `and` would give a symbolic value where the lengths in a graph are symbolic
    if causal and plain and queries == keys:
        simple = True
    if not simple:
        mask = masks.combine(
            mask, queries, keys, causal=causal, selfmask=selfmask, window=window, device=q.device, slopes=slopes
        )
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    if products:
        return Call(q, k, v, mask, dropout, False, scale, v.shape[-1], "products", modifiers=modifiers)
    size, widest = v.shape[-1], max(q.shape[-1], v.shape[-1])
    if q.shape[-1] != size:
        if q.device.type != "cpu":
            widest = math.ceil(widest / 8) * 8  # the accelerators' kernels take multiples of eight
        q, k, v = (F.pad(tensor, (0, widest - tensor.shape[-1])) for tensor in (q, k, v))
    return Call(q, k, v, mask, dropout, simple, scale, size)


def packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    *,
    scale: float,
    causal: bool,
    dropout: float,
    selfmask: bool,
    window: int | None,
    modifiers: Modifiers,
) -> Call | None:
    """The arguments for sequences of these lengths, which fill all rows one after the other; None if no kernel can."""
    if selfmask or not _by_varlen(q, k, v, dropout, modifiers):
        return None
    return Call(q, k, v, None, 0.0, causal, scale, v.shape[-1], "varlen", window=window, lengths=lengths)


def run(call: Call) -> Tensor:
    """The attention of a prepared call: (batch, heads, query, size of the values)."""
    if call.route == "blocked":
        return blocked.blocked_attention(call.q, call.k, call.v, call.scale, call.selfmask, call.window, call.modifiers)
    if call.route == "varlen":
        q, k, v, scale, causal = call.q, call.k, call.v, call.scale, call.causal
        return varlen.attention(q, k, v, scale=scale, causal=causal, window=call.window, lengths=call.lengths)
    if call.route == "products":
        return _products(call)
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
    """What `run` will use: "flash", "efficient", "cudnn", "blocked", "products", or "math", the quadratic one."""
    if call.route != "fused":
        return "flash" if call.route == "varlen" else call.route
    # PyTorch has no public function for this; its dispatcher answers for the arguments that it will get.
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


def _within(
    window: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, int | None]:
    """Keys, values and mask from where the first query's window begins, and the window if it still hides any."""
    queries, keys = q.shape[-2], k.shape[-2]
    before = keys - queries - window + 1
    if before > 0:
        k, v, keys = k[..., before:, :], v[..., before:, :], keys - before
        mask = mask if mask is None or mask.shape[-1] == 1 else mask[..., before:]
    # A graph compiled for any length must not be specialised to one side of the window.
    return k, v, mask, window if torch.compiler.is_compiling() or window < keys else None


def _by_blocks(q: Tensor, k: Tensor, v: Tensor, window: int | None = None, modifiers: Modifiers = NONE) -> bool:
    """Whether causal attention of as many queries as keys is computed by blocks of rows."""
    able = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and q.shape[-2] > 1
    able = able and v.shape[1] == k.shape[1]
    if _force_blocks is not None or not able:
        return able and bool(_force_blocks)
    if wants_plain(q) or not torch.backends.cuda.flash_sdp_enabled():  # which `sdpa_kernel` switches off
        return False
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    most = blocked.MOST_BYTES
    if modifiers.needs_scores or modifiers.slopes is not None:
        wins = True  # the alternative forms all scores, or a mask of all pairs
    elif window is not None:
        wins = q.shape[-2] >= BLOCKED_WINDOW
    else:
        wins, most = q.shape[-2] in (BLOCKED_TRAINING if training else BLOCKED_FORWARD), BLOCKED_BYTES
    return wins and (not training or blocked.kept_bytes(q, window) <= most)


def _by_varlen(q: Tensor, k: Tensor, v: Tensor, dropout: float, modifiers: Modifiers) -> bool:
    """Whether the kernel for sequences side by side computes what is asked."""
    return not dropout and not modifiers.needs_scores and modifiers.slopes is None and varlen.able(q, k, v)


def _by_products(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    """Whether the formula is used: where values have other heads than keys, and for a single query of a CPU where the
    fused kernel would pad sizes that differ, or read grouped keys once for each query head.
    """
    if v.shape[1] != k.shape[1]:
        return True
    if q.shape[-2] != 1 or dropout or q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    full_precision = q.dtype in (torch.float32, torch.float64)
    return full_precision and k.shape[-2] > 1 and (q.shape[-1] != v.shape[-1] or q.shape[1] != k.shape[1])


def _products(call: Call) -> Tensor:
    """The formula, with the heads of a group as the rows of one product."""
    batch, heads, queries, size = call.q.shape  # any may be 0, so none is left to be inferred
    groups, keys = call.k.shape[1:3]
    q, k = call.q, call.k
    if call.modifiers.needs_scores and q.dtype in (torch.float16, torch.bfloat16):
        q, k = q.float(), k.float()  # as the fused kernels do, which round no score
    rows = (q * call.scale).reshape(batch, groups, heads // groups * queries, size)
    scores = capped((rows @ k.mT).view(batch, heads, queries, keys), call.modifiers.softcap)
    weights = reference.masked_softmax(scores, call.mask, call.modifiers.sinks).to(call.v.dtype)
    if call.dropout:
        weights = F.dropout(weights, call.dropout)
    groups, _, size = call.v.shape[1:]
    return (weights.view(batch, groups, heads // groups * queries, keys) @ call.v).view(batch, heads, queries, size)


def _expand(mask: Tensor | None) -> Tensor | None:
    """To four dimensions, which the fused CPU kernel requires."""
    return mask if mask is None else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
