"""Causal attention by blocks of rows, for CPUs: what lies above the diagonal is never computed.

The fused CPU kernel computes all L² scores of a causal head up to some hundred positions. Here the scores of ROWS
queries at a time are formed against the keys that they may see, about half of the work. Their softmax is kept for the
gradient, so memory grows with L²/2 where the fused kernel's grows with L: `fits` says the bytes, and MOST_BYTES bounds
them. All is exact: same sums, in another order.
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
) -> Float[Tensor, "batch heads length size_v"]:
    """softmax(scale · Q Kᵀ, causal) V; with `selfmask` no position sees itself, but the first.

    Keys and values may be grouped: query head h reads group h // (heads / groups).
    """
    out: Tensor = _Blocked.apply(q, k, v, scale, selfmask)
    return out


def kept_bytes(q: Tensor) -> int:
    """What is kept for the gradient: the weights on and below the diagonal, in whole blocks."""
    batch, heads, length, _ = q.shape
    rows = sum((stop - start) * stop for start, stop in _blocks(length))
    return batch * heads * rows * q.element_size()


class _Blocked(torch.autograd.Function):
    """In forward and backward, (batch, heads, length, size) is (batch × groups, heads per group, length, size)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, selfmask: bool) -> Tensor:
        batch, heads, length, _ = q.shape
        groups = k.shape[1]
        q = (q * scale).reshape(batch * groups, heads // groups, length, -1)
        k, v = (tensor.reshape(batch * groups, length, -1) for tensor in (k, v))
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        kept = []
        for start, stop in _blocks(length):
            scores = _rows(q, start, stop) @ k[:, :stop].mT
            _hide(scores.unflatten(1, (-1, stop - start)), start, stop, selfmask)
            weights = scores.softmax(-1)
            out[:, :, start:stop] = (weights @ v[:, :stop]).unflatten(1, (-1, stop - start))
            kept.append(weights)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(q, k, v, *kept)
            ctx.scale = scale
        return out.view(batch, heads, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        batch, _, length, _ = gradient.shape
        gradient = gradient.reshape(*q.shape[:-1], -1)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, stop), weights in zip(_blocks(length), kept, strict=True):
            above = _rows(gradient, start, stop)
            dv[:, :stop].baddbmm_(weights.mT, above)
            # of the softmax: w (g − Σ w g), in one pass
            scores = torch._softmax_backward_data(above @ v[:, :stop].mT, weights, -1, weights.dtype)
            dq[:, :, start:stop] = (scores @ k[:, :stop]).unflatten(1, (-1, stop - start))
            dk[:, :stop].baddbmm_(scores.mT, _rows(q, start, stop))
        shape = (batch, -1, length)
        gradients = (dq.mul_(ctx.scale), dk, dv)
        return *(tensor.view(*shape, tensor.shape[-1]) for tensor in gradients), None, None


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, ROWS):
        yield start, min(start + ROWS, length)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The rows of all heads of a group, one below the other."""
    return tensor[:, :, start:stop].flatten(1, 2)


def _hide(scores: Tensor, start: int, stop: int, selfmask: bool) -> None:
    """Write −∞ where the rows may not look: only the last columns can lie above the diagonal."""
    size = stop - start
    above = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu(0 if selfmask else 1)
    if selfmask and start == 0:
        above[0, 0] = False  # nothing else is left to the first
    scores[..., start:stop].masked_fill_(above, float("-inf"))
