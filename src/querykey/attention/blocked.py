"""Causal attention by blocks of rows, for CPUs: what lies above the diagonal is never computed.

The fused CPU kernel computes all L² scores of a causal head up to some hundred positions. Here the scores of ROWS
queries at a time are formed against the keys that they may see, about half of the work. Their softmax is kept for the
gradient, so memory grows with L²/2 where the fused kernel's grows with L: `kept_bytes` says how much, and MOST_BYTES
bounds it. All is exact: same sums, in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 64  # queries at a time: fewer make small products, more compute more above the diagonal
MOST_BYTES = 2**30  # of kept weights


def blocked_attention(
    q: Float[Tensor, "batch heads length size"],
    k: Float[Tensor, "batch groups length size"],
    v: Float[Tensor, "batch groups length size_v"],
    scale: float,
    selfmask: bool = False,
    window: int | None = None,
) -> Float[Tensor, "batch heads length size_v"]:
    """softmax(scale · Q Kᵀ, causal) V; with `selfmask` no position sees itself, unless it sees nothing else.

    Keys and values may be grouped: query head h reads group h // (heads / groups). With a `window` a position sees
    itself and the window − 1 before it.
    """
    out: Tensor = _Blocked.apply(q, k, v, scale, selfmask, window)
    return out


def kept_bytes(q: Tensor, window: int | None = None) -> int:
    """What is kept for the gradient: the weights on and below the diagonal, in whole blocks."""
    batch, heads, length, _ = q.shape
    pairs = sum((stop - start) * (stop - first) for first, start, stop in _blocks(length, window))
    return batch * heads * pairs * q.element_size()


class _Blocked(torch.autograd.Function):
    """In forward and backward, (batch, heads, length, size) is (batch × groups, heads per group, length, size)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, selfmask: bool, window: int | None) -> Tensor:
        batch, heads, length, size = q.shape
        groups = k.shape[1]
        q = (q * scale).reshape(batch * groups, heads // groups, length, size)
        k, v = (tensor.reshape(batch * groups, length, tensor.shape[-1]) for tensor in (k, v))
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        kept, training = [], any(ctx.needs_input_grad)
        for first, start, stop in _blocks(length, window):
            scores = _rows(q, start, stop) @ k[:, first:stop].mT
            _hide(scores.unflatten(1, (heads // groups, stop - start)), start, selfmask, window)
            weights = scores.softmax(-1)
            out[:, :, start:stop] = (weights @ v[:, first:stop]).unflatten(1, (heads // groups, stop - start))
            if training:
                kept.append(weights)
        if training:
            ctx.save_for_backward(q, k, v, *kept)
            ctx.scale, ctx.window = scale, window
        return out.view(batch, heads, length, v.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        batch, heads, length, size = gradient.shape
        gradient = gradient.reshape(*q.shape[:-1], size)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (first, start, stop), weights in zip(_blocks(length, ctx.window), kept, strict=True):
            above = _rows(gradient, start, stop)
            dv[:, first:stop].baddbmm_(weights.mT, above)
            # of the softmax: w (g − Σ w g), in one pass
            scores = torch._softmax_backward_data(above @ v[:, first:stop].mT, weights, -1, weights.dtype)
            dq[:, :, start:stop] = (scores @ k[:, first:stop]).unflatten(1, (q.shape[1], stop - start))
            dk[:, first:stop].baddbmm_(scores.mT, _rows(q, start, stop))
        gradients = ((dq.mul_(ctx.scale), heads), (dk, heads // q.shape[1]), (dv, heads // q.shape[1]))
        return *(tensor.view(batch, count, length, tensor.shape[-1]) for tensor, count in gradients), None, None, None


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first key, first query, end of both) of each block."""
    for start in range(0, length, ROWS):
        yield 0 if window is None else max(0, start - window + 1), start, min(start + ROWS, length)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The rows of all heads of a group, one below the other."""
    return tensor[:, :, start:stop].flatten(1, 2)


def _hide(scores: Tensor, start: int, selfmask: bool, window: int | None) -> None:
    """Write −∞ where rows from `start` may not look: above the diagonal, and below the window's edge."""
    rows, columns = scores.shape[-2:]
    above = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu(0 if selfmask and window != 1 else 1)
    if selfmask and start == 0:
        above[0, 0] = False  # nothing else is left to the first
    scores[..., columns - rows :].masked_fill_(above, float("-inf"))
    if window is not None and start + rows > window:
        first = start + rows - columns
        below = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).tril(start - window - first)
        scores[..., :rows].masked_fill_(below, float("-inf"))
