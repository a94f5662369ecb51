"""Rotary positions (Su et al., RoFormer, 2104.09864): position p turns the pair (j, j + size/2) by the angle p·θ_j.

The scores of turned queries and keys depend on the distance of their positions only. The halves are paired as in Llama.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BASE = 10_000.0


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
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
