"""Rotary positions (Su et al., RoFormer, 2104.09864): position p turns the pair (j, j + size/2) by the angle p·θ_j.

The scores of turned queries and keys depend on the distance of their positions only. The halves are paired as in Llama.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.attention.tracing import wants_plain

BASE = 10_000.0

_FEWEST, _MOST = 64, 2**16  # positions in a kept table: it doubles when a later one is asked for
_tables: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}


def angles(
    start: int, length: int, size: int, *, device: torch.device | None = None, base: float = BASE
) -> Float[Tensor, "length half"]:
    """p·θ_j for positions p from `start`, with θ_j = base^(−2j/size). In float64: p·θ_j needs the digits."""
    frequencies = base ** (torch.arange(0, size, 2, dtype=torch.float64, device=device) / -size)
    return torch.arange(start, start + length, dtype=torch.float64, device=device).outer(frequencies)


def rotate(
    x: Float[Tensor, "... length size"], angle: Float[Tensor, "length half"]
) -> Float[Tensor, "... length size"]:
    """Turn each pair of `x` by its position's angle. The size must be even."""
    return _turned(x, *_cos_sin(angle, x))


def place(x: Float[Tensor, "... length size"], start: int) -> Float[Tensor, "... length size"]:
    """`rotate` to the positions from `start`. Cosines and sines are computed once and kept, in the dtype of `x`."""
    return _turned(x, *_table(x, start, start + x.shape[-2]))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if wants_plain(x):
        (first, second), (cos, _) = x.chunk(2, -1), cos.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    if torch.is_grad_enabled() and x.requires_grad:
        turned: Tensor = _Turn.apply(x, cos, sin, 1)
        return turned
    return _turn(x, cos, sin, 1)


class _Turn(torch.autograd.Function):
    """Turning, whose gradient is turning back: half the passes over memory that autograd would make of the formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
        ctx.table = cos, sin, sign
        return _turn(x, cos, sin, sign)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, sign = ctx.table
        return _Turn.apply(gradient, cos, sin, -sign), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """By the angle or, with sign −1, back: all times cos, then onto each half the other times sin, in place.

    `addcmul_` would save another pass, but rounds once where the formula rounds twice: what was trained with the
    formula could not be trained again to the same digit.
    """
    first, second = x.chunk(2, -1)
    out = x * cos
    out_first, out_second = out.chunk(2, -1)
    out_first.sub_(second * sin, alpha=sign)
    out_second.add_(first * sin, alpha=sign)
    return out


def _table(x: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """(end − start, size) cosines and (end − start, size/2) sines, for the size, dtype and device of `x`."""
    size = x.shape[-1]
    if wants_plain(x) or end > _MOST:
        return _cos_sin(angles(start, end - start, size, device=x.device), x)
    key = size, x.dtype, x.device
    kept = _tables.get(key)
    if kept is None or kept[0].shape[0] < end:
        length = max(_FEWEST, 1 << (end - 1).bit_length())
        # not every accelerator has the float64 of angles
        kept = _tables[key] = _cos_sin(angles(0, length, size, device=torch.device("cpu")), x)
    return kept[0][start:end], kept[1][start:end]


def _cos_sin(angle: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = (part.to(device=x.device, dtype=x.dtype) for part in (angle.cos(), angle.sin()))
    return torch.cat([cos, cos], -1), sin
