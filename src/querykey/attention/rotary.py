"""Rotary positions (Su et al., RoFormer, 2104.09864): position p rotates pair j of a head by the angle p·θ_j.

The scores of rotated queries and keys depend on the distance of their positions only. `Frequencies` says which numbers
are pairs, and θ_j.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.attention.sequence import Span
from querykey.attention.tracing import wants_plain
from querykey.positions import Frequencies

_FEWEST, _MOST = 64, 2**16  # positions in a kept table: it doubles, and beyond the second only for calls as long as it
_tables: dict[tuple[Frequencies, bool, int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
_frequencies: dict[tuple[Frequencies, bool, torch.device], Tensor] = {}


def rotate(
    x: Float[Tensor, "... length size"], frequencies: Frequencies, positions: Span | Tensor
) -> Float[Tensor, "... length size"]:
    """`x` rotated to its positions.

    Args:
        x: (batch, heads, length, size), or other leading dimensions with a span of positions.
        frequencies: of the pairs.
        positions: a span, whose cosines and sines are computed once and kept; or (length,) or (batch, length).
    """
    if isinstance(positions, Span):
        cos, sin = _table(x, frequencies, positions)
    else:
        cos, sin = _cos_sin(frequencies, angles(frequencies, positions), x)
        if positions.ndim == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
    if wants_plain(x):
        return _formula(x, cos, sin, frequencies)
    if torch.is_grad_enabled() and x.requires_grad:
        rotated: Tensor = _Rotate.apply(x, cos, sin, 1, frequencies.interleaved)
        return rotated
    return _rotate(x, cos, sin, 1, frequencies.interleaved)


def _formula(x: Tensor, cos: Tensor, sin: Tensor, frequencies: Frequencies) -> Tensor:
    half, interleaved = frequencies.size // 2, frequencies.interleaved
    (first, second), (cos, _) = _halves(x, half, interleaved), _halves(cos, half, interleaved)
    turned = first * cos - second * sin, second * cos + first * sin
    rotated = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return rotated if rotated.shape[-1] == x.shape[-1] else torch.cat([rotated, x[..., 2 * half :]], -1)


class _Rotate(torch.autograd.Function):
    """Rotation, whose gradient is rotated back: half the passes over memory that autograd would make of the formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, sign: int, interleaved: bool) -> Tensor:
        ctx.table = cos, sin, sign, interleaved
        return _rotate(x, cos, sin, sign, interleaved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, sign, interleaved = ctx.table
        return _Rotate.apply(gradient, cos, sin, -sign, interleaved), None, None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int, interleaved: bool) -> Tensor:
    """By the angle or, with sign −1, back: all times cos, then onto each half the other times sin, in place.

    `addcmul_` would save another pass, but rounds once where the formula rounds twice: what was trained with the
    formula could not be trained again to the same digit.
    """
    half = sin.shape[-1]
    first, second = _halves(x, half, interleaved)
    out = x * cos
    out_first, out_second = _halves(out, half, interleaved)
    out_first.sub_(second * sin, alpha=sign)
    out_second.add_(first * sin, alpha=sign)
    return out


def _halves(x: Tensor, half: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The first and the second number of each pair; numbers after the pairs are not rotated."""
    if interleaved:
        return x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    return x[..., :half], x[..., half : 2 * half]


def _table(x: Tensor, frequencies: Frequencies, positions: Span) -> tuple[Tensor, Tensor]:
    """(length, size) cosines and (length, pairs) sines, for the size, dtype and device of `x`."""
    start, end = positions.start, positions.stop
    beyond = frequencies.limit > 0 and end > frequencies.limit
    if wants_plain(x) or (beyond and frequencies.growth is not None):  # which changes with each length
        numbers = torch.arange(start, end, device=x.device)
        return _cos_sin(frequencies, angles(frequencies, numbers, end), x)
    key = frequencies, beyond, x.shape[-1], x.dtype, x.device
    kept = _tables.get(key)
    if kept is None or kept[0].shape[0] < end:
        if end > _MOST and 2 * start > end:
            return _cos_sin(frequencies, angles(frequencies, torch.arange(start, end), end), x)
        numbers = torch.arange(max(_FEWEST, 1 << (end - 1).bit_length()))
        # made on the CPU: not every accelerator has the float64 of angles
        kept = _tables[key] = _cos_sin(frequencies, angles(frequencies, numbers, end), x)
    return kept[0][start:end], kept[1][start:end]


def angles(frequencies: Frequencies, positions: Tensor, length: int | None = None) -> Float[Tensor, "... pairs"]:
    """p·θ_j for integer positions, in float64: it needs the digits.

    Scaled frequencies may depend on the length of the sequence: one more than the last position when not given.
    """
    if length is None:
        length = int(positions.max()) + 1 if frequencies.limit and positions.numel() else 1
    return positions.double().unsqueeze(-1) * _of_pairs(frequencies, length, positions)


def _of_pairs(frequencies: Frequencies, length: int, positions: Tensor) -> Float[Tensor, " pairs"]:
    """On the device of the positions, kept: a step that is recorded as a CUDA graph can copy nothing to it."""
    if wants_plain(positions) or frequencies.growth is not None:
        return frequencies.at(length, positions.device)
    key = frequencies, length > frequencies.limit > 0, positions.device
    if key not in _frequencies:
        _frequencies[key] = frequencies.at(length, positions.device)
    return _frequencies[key]


def _cos_sin(frequencies: Frequencies, angle: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines for each number of a head, 1 for those that are not rotated, and sines for each pair."""
    cos, sin = angle.cos() * frequencies.scale, angle.sin() * frequencies.scale
    cos = cos.repeat_interleave(2, -1) if frequencies.interleaved else torch.cat([cos, cos], -1)
    if cos.shape[-1] < x.shape[-1]:
        cos = F.pad(cos, (0, x.shape[-1] - cos.shape[-1]), value=1.0)
    return cos.to(device=x.device, dtype=x.dtype), sin.to(device=x.device, dtype=x.dtype)
