"""Sequences side by side, and sliding windows, in one kernel without a mask: FlashAttention's, on CUDA in 16 bits.

`torch.nn.attention.varlen` takes the tokens of all sequences one after the other, (tokens, heads, size), and where each
sequence starts. It knows no mask: causal or not, a window, and grouped keys are all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.attention.tracing import wants_plain

LARGEST = 256  # size of a head


def able(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes these, (batch, heads, length, size) each, and the user has not switched it off."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16) or wants_plain(q):
        return False
    fits = q.shape[-1] == v.shape[-1] <= LARGEST and q.shape[-1] % 8 == 0 and k.shape[1] == v.shape[1]
    there = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    there = there and torch.backends.cuda.flash_sdp_enabled()
    return fits and there and q.numel() > 0 and torch.cuda.get_device_capability(q.device) >= (8, 0)


def attention(
    q: Float[Tensor, "batch heads queries size"],
    k: Float[Tensor, "batch groups keys size"],
    v: Float[Tensor, "batch groups keys size"],
    *,
    scale: float,
    causal: bool,
    window: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Float[Tensor, "batch heads queries size"]:
    """softmax(scale · Q Kᵀ) V within each sequence; the last query is aligned to the last key.

    Args:
        q, k, v: with grouped keys and values; query head h reads group h // (heads / groups).
        scale: factor on the scores.
        causal: a query sees no later key.
        window: with `causal`, a query sees itself and the window − 1 keys before it.
        lengths: of the sequences, which fill all rows one after the other; each row is one sequence when not given.
    """
    batch, keys, queries = q.shape[0], k.shape[2], q.shape[2]
    starts = _starts(lengths, batch, queries, q.device)
    of_keys = starts if keys == queries else _starts(lengths, batch, keys, q.device)
    longest = (queries, keys) if lengths is None else (max(lengths), max(lengths))
    sides = (-1 if window is None else window - 1, 0) if causal else (-1, -1)
    flat = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (q, k, v))
    out: Tensor = kernel()(*flat, starts, of_keys, *longest, scale=scale, window_size=sides)
    rows: Tensor = out.unflatten(0, (batch, queries)).transpose(1, 2)
    return rows


@cache
def kernel() -> Callable[..., Any]:
    """PyTorch's function, which is slow to import; torch 2.11 groups keys without being told so."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return partial(varlen_attn, enable_gqa=True) if grouped else varlen_attn


def _starts(lengths: Sequence[int] | None, batch: int, each: int, device: torch.device) -> Tensor:
    """Where each sequence starts, and the end; for rows without a copy, which a CUDA graph refuses to record."""
    if lengths is None:
        return torch.arange(0, (batch + 1) * each, each, dtype=torch.int32, device=device)
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)
