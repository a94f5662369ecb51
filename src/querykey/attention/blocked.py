"""Causal attention by blocks of rows, for CPUs: scores above the diagonal are never computed.

The fused CPU kernel computes all L² scores of a causal head up to some hundred positions. Here the scores of ROWS
queries at a time are formed against the keys that they may see, about half of the work. Their softmax is kept for the
gradient, so memory grows with L²/2 where the fused kernel's grows with L: `kept_bytes` says how much, and MOST_BYTES
bounds it. The result is exact: the same sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from querykey.attention.modifiers import NONE, Modifiers

ROWS = 64  # queries at a time: fewer make small products, more compute more above the diagonal
MOST_BYTES = 2**30  # of kept weights


def blocked_attention(
    q: Float[Tensor, "batch heads length size"],
    k: Float[Tensor, "batch groups length size"],
    v: Float[Tensor, "batch groups length size_v"],
    scale: float,
    selfmask: bool = False,
    window: int | None = None,
    modifiers: Modifiers = NONE,
) -> Float[Tensor, "batch heads length size_v"]:
    """softmax(scale · Q Kᵀ, causal) V; with `selfmask` no position sees itself, unless it sees nothing else.

    Keys and values may be grouped: query head h reads group h // (heads / groups). With a `window` a position sees
    itself and the window − 1 before it.
    """
    out: Tensor = _Blocked.apply(q, k, v, modifiers.sinks, scale, selfmask, window, modifiers._replace(sinks=None))
    return out


def kept_bytes(q: Tensor, window: int | None = None) -> int:
    """What is kept for the gradient: the weights on and below the diagonal, in whole blocks."""
    batch, heads, length, _ = q.shape
    pairs = sum((stop - start) * (stop - first) for first, start, stop in _blocks(length, window))
    return batch * heads * pairs * q.element_size()


class _Blocked(torch.autograd.Function):
    """In forward and backward, (batch, heads, length, size) is (batch × groups, heads per group, length, size)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        scale: float,
        selfmask: bool,
        window: int | None,
        modifiers: Modifiers,
    ) -> Tensor:
        batch, heads, length, size = q.shape
        groups, per_group = k.shape[1], heads // k.shape[1]
        q = (q * scale).reshape(batch * groups, per_group, length, size)
        k, v = (tensor.reshape(batch * groups, length, tensor.shape[-1]) for tensor in (k, v))
        slopes, column = (_per_head(numbers, batch, per_group) for numbers in (modifiers.slopes, sinks))
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        kept, steep, training = [], [], any(ctx.needs_input_grad)
        for first, start, stop in _blocks(length, window):
            scores = _rows(q, start, stop) @ k[:, first:stop].mT
            if modifiers.softcap is not None:
                tanh = scores.div_(modifiers.softcap).tanh_()
                steep += [1 - tanh.square()] * training
                scores = tanh * modifiers.softcap
            by_head = scores.unflatten(1, (per_group, stop - start))
            if slopes is not None:
                by_head += slopes * _distances(first, start, stop, scores)
            _hide(by_head, start, selfmask, window)
            weights = scores.softmax(-1) if column is None else _with_sink(by_head, column)
            out[:, :, start:stop] = (weights @ v[:, first:stop]).unflatten(1, (per_group, stop - start))
            kept += [weights] * training
        if training:
            ctx.save_for_backward(q, k, v, *kept, *steep)
            ctx.scale, ctx.window, ctx.with_sinks = scale, window, sinks is not None
        return out.view(batch, heads, length, v.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        batch, heads, length, size = gradient.shape
        per_group = q.shape[1]
        gradient = gradient.reshape(*q.shape[:-1], size)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dsinks = q.new_zeros(q.shape[:2])
        blocks = list(_blocks(length, ctx.window))
        for number, (first, start, stop) in enumerate(blocks):
            weights, above = kept[number], _rows(gradient, start, stop)
            dv[:, first:stop].baddbmm_(weights.mT, above)
            dweights = above @ v[:, first:stop].mT
            if ctx.with_sinks:  # a sink has the rest of the weight, and reads nothing
                rest = (weights.sum(-1) - 1) * (dweights * weights).sum(-1)
                dsinks += rest.unflatten(1, (per_group, stop - start)).sum(-1)
            # of the softmax: w (g − Σ w g), in one pass
            scores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            if len(kept) > len(blocks):
                scores *= kept[len(blocks) + number]
            dq[:, :, start:stop] = (scores @ k[:, first:stop]).unflatten(1, (per_group, stop - start))
            dk[:, first:stop].baddbmm_(scores.mT, _rows(q, start, stop))
        gradients = ((dq.mul_(ctx.scale), heads), (dk, heads // per_group), (dv, heads // per_group))
        of_sinks = dsinks.view(batch, heads).sum(0) if ctx.with_sinks else None
        shaped = (tensor.view(batch, count, length, tensor.shape[-1]) for tensor, count in gradients)
        return *shaped, of_sinks, None, None, None, None


def _per_head(numbers: Tensor | None, batch: int, per_group: int) -> Tensor | None:
    """One number per head as (batch × groups, heads per group, 1, 1)."""
    return None if numbers is None else numbers.view(-1, per_group, 1, 1).repeat(batch, 1, 1, 1)


def _distances(first: int, start: int, stop: int, like: Tensor) -> Tensor:
    """j − i for the queries i and the keys j of a block."""
    keys = torch.arange(first, stop, device=like.device, dtype=like.dtype)
    return keys - keys[start - first :, None]


def _with_sink(by_head: Tensor, column: Tensor) -> Tensor:
    """The weights of a block's keys, where a sink of each head takes part; rows one below the other."""
    scores = torch.cat([by_head, column.to(by_head.dtype).expand(*by_head.shape[:-1], 1)], -1)
    return scores.softmax(-1)[..., :-1].flatten(1, 2).contiguous()


def _blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """(first key, first query, end of both) of each block."""
    for start in range(0, length, ROWS):
        yield 0 if window is None else max(0, start - window + 1), start, min(start + ROWS, length)


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    """The rows of all heads of a group, one below the other."""
    return tensor[:, :, start:stop].flatten(1, 2)


def _hide(scores: Tensor, start: int, selfmask: bool, window: int | None) -> None:
    """Write −∞ where rows from `start` may not attend: above the diagonal, and below the window's edge."""
    rows, columns = scores.shape[-2:]
    above = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu(0 if selfmask and window != 1 else 1)
    if selfmask and start == 0:
        above[0, 0] = False  # nothing else is left to the first
    scores[..., columns - rows :].masked_fill_(above, float("-inf"))
    if window is not None and start + rows > window:
        first = start + rows - columns
        below = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).tril(start - window - first)
        scores[..., :rows].masked_fill_(below, float("-inf"))
