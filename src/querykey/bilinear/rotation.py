"""Rotary positions as an average over distances.

A query at distance r from a key is rotated against it by `Rot(r)`, which rotates the j-th pair of head dimensions by
the angle r·θ_j. With `Rot(r) = diag(cos rθ) + J diag(sin rθ)`, J the rotation of every pair by a right angle, the mean
over |r| < window is

    mean of Rot(r)ᵀ X Rot(r) = T_cos ∘ X − T_sin ∘ (J X J),

two fixed tables of the head's size for any window. Both directions count alike, also where a causal mask uses only
one: this keeps the symmetry of a head between −1 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotation:
    """Which dimensions of a head rotate, how fast, and over which distances the measures average.

    - `frequencies`: θ_j in radians per position, one per pair. Dimension j pairs with j + pairs; dimensions after the
      pairs do not rotate (partial rotary positions).
    - `head_dim`: size of a query.
    - `window`: distances |r| < window count; None is the limit of a window that is long against every period.

    Raises ValueError for pairs that do not fit into the head and for an empty window.
    """

    frequencies: Float[Tensor, "pairs"]
    head_dim: int
    window: int | None

    def __post_init__(self) -> None:
        """Check the sizes."""
        rotated = 2 * len(self.frequencies)
        if rotated > self.head_dim:
            raise ValueError(
                f"{len(self.frequencies)} frequencies rotate {rotated} dimensions, which does not fit into a head of "
                f"size {self.head_dim}"
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"the window is {self.window}; expected 1 (distance 0 alone) or more")

    @cached_property
    def first(self) -> Int[Tensor, "pairs"]:
        """First dimension of each pair."""
        return torch.arange(len(self.frequencies), device=self.frequencies.device)

    @cached_property
    def second(self) -> Int[Tensor, "pairs"]:
        """Second dimension of each pair."""
        return self.first + len(self.frequencies)

    @cached_property
    def angles(self) -> Float[Tensor, "head_dim"]:
        """θ of every head dimension; 0 for those that do not rotate."""
        angles = torch.zeros(self.head_dim, dtype=torch.float64, device=self.frequencies.device)
        angles[self.first] = angles[self.second] = self.frequencies.to(torch.float64)
        return angles

    @cached_property
    def still(self) -> Bool[Tensor, "head_dim"]:
        """Which dimensions do not rotate."""
        return self.angles == 0

    @cached_property
    def tables(self) -> tuple[Float[Tensor, "head_dim head_dim"], Float[Tensor, "head_dim head_dim"]]:
        """Means of `cos rθ_i cos rθ_j` and of `sin rθ_i sin rθ_j`."""
        difference = _mean_cosine(self.angles[:, None] - self.angles, self.window)
        total = _mean_cosine(self.angles[:, None] + self.angles, self.window)
        return (difference + total) / 2, (difference - total) / 2

    def right_angle(self, x: Float[Tensor, "*batch head_dim columns"]) -> Float[Tensor, "*batch head_dim columns"]:
        """`J x`: the rows of each pair rotated by a right angle, and 0 for rows that do not rotate."""
        out = torch.zeros_like(x)
        out[..., self.first, :] = -x[..., self.second, :]
        out[..., self.second, :] = x[..., self.first, :]
        return out

    def average(self, x: Float[Tensor, "*batch head_dim head_dim"]) -> Float[Tensor, "*batch head_dim head_dim"]:
        """Mean of `Rot(r)ᵀ x Rot(r)` over the window; that of `Rot(r) x Rot(r)ᵀ` is the same."""
        cosines, sines = (table.to(x.dtype) for table in self.tables)
        rotated = -self.right_angle(self.right_angle(x).mT).mT  # J x J, since Jᵀ = −J
        return cosines * x - sines * rotated

    def pair_norms(self, gram: Float[Tensor, "*heads head_dim head_dim"]) -> Float[Tensor, "*heads pairs"]:
        """Norms of the complex columns `A₁ + iA₂` of the pairs, from `AᵀA`."""
        energies = gram.diagonal(dim1=-2, dim2=-1)
        return (energies[..., self.first] + energies[..., self.second]).clamp(min=0).sqrt()


def _mean_cosine(angle: Float[Tensor, "*shape"], window: int | None) -> Float[Tensor, "*shape"]:
    """Mean of `cos(r·angle)` over |r| < window, the Dirichlet kernel: `sin(n·a/2) / (n·sin(a/2))`, n = 2·window − 1."""
    if window is None:
        return (angle == 0).to(angle.dtype)
    terms, half = 2 * window - 1, angle / 2
    return torch.where(angle == 0, 1, (terms * half).sin() / (terms * torch.where(angle == 0, 1, half.sin())))
