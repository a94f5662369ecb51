"""Rotary positions as an average over distances.

A query turns against a key at distance r by `Rot(r)`, which turns the j-th pair of head dimensions by the angle r·θ_j.
With `Rot(r) = diag(cos rθ) + J diag(sin rθ)`, J the quarter turn of every pair, the mean over |r| < window is

    mean of Rot(r)ᵀ X Rot(r) = T_cos ∘ X − T_sin ∘ (J X J),

two fixed tables of the head's size, whatever the length of the window. Both directions count alike, also where a causal
mask uses only one: that is what keeps a symmetry between −1 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Pairing = Literal["half", "interleaved"]


@dataclass(frozen=True, eq=False)
class Rotation:
    """Which dimensions of a head turn, how fast, and over which distances.

    - `frequencies`: θ_j in radians per position, one per pair.
    - `head_dim`: size of a query; dimensions in no pair do not turn (partial rotary positions).
    - `window`: distances below it count; None is the limit of a window that is long against every period.
    - `pairing`: "half" turns dimension j with j + pairs (Llama, GPT-NeoX), "interleaved" 2j with 2j + 1 (GPT-J).
    - `start`: the first dimension that turns (in DeepSeek's heads the turning ones come last).

    Raises `ValueError` for pairs that do not fit into the head, an empty window or an unknown pairing.
    """

    frequencies: Float[Tensor, "pairs"]
    head_dim: int
    window: int | None
    pairing: Pairing = "half"
    start: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        turning = 2 * len(self.frequencies)
        if self.start < 0 or self.start + turning > self.head_dim:
            raise ValueError(
                f"{len(self.frequencies)} frequencies turn {turning} dimensions from dimension {self.start} on; "
                f"that does not fit into a head of size {self.head_dim}."
            )
        if self.window is not None and self.window < 1:
            raise ValueError(f"The window holds at least distance 0, so it is 1 or more, not {self.window}.")
        if self.pairing not in ("half", "interleaved"):
            raise ValueError(f"The pairing is 'half' or 'interleaved', not {self.pairing!r}.")

    @cached_property
    def first(self) -> Int[Tensor, "pairs"]:
        """First dimension of each pair."""
        pairs = torch.arange(len(self.frequencies), device=self.frequencies.device)
        return self.start + (pairs if self.pairing == "half" else 2 * pairs)

    @cached_property
    def second(self) -> Int[Tensor, "pairs"]:
        """Second dimension of each pair."""
        return self.first + (len(self.frequencies) if self.pairing == "half" else 1)

    @cached_property
    def angles(self) -> Float[Tensor, "head_dim"]:
        """θ of every head dimension; 0 for those that do not turn."""
        angles = torch.zeros(self.head_dim, dtype=torch.float64, device=self.frequencies.device)
        angles[self.first] = angles[self.second] = self.frequencies.to(torch.float64)
        return angles

    @cached_property
    def still(self) -> Bool[Tensor, "head_dim"]:
        """Which dimensions do not turn."""
        return self.angles == 0

    @cached_property
    def tables(self) -> tuple[Float[Tensor, "head_dim head_dim"], Float[Tensor, "head_dim head_dim"]]:
        """Means of `cos rθ_i cos rθ_j` and of `sin rθ_i sin rθ_j`."""
        difference = _mean_cosine(self.angles[:, None] - self.angles, self.window)
        total = _mean_cosine(self.angles[:, None] + self.angles, self.window)
        return (difference + total) / 2, (difference - total) / 2

    def turned(self, x: Float[Tensor, "*batch head_dim columns"]) -> Float[Tensor, "*batch head_dim columns"]:
        """`J x`: the rows of each pair turned by a right angle, and 0 for rows that do not turn."""
        out = torch.zeros_like(x)
        out[..., self.first, :] = -x[..., self.second, :]
        out[..., self.second, :] = x[..., self.first, :]
        return out

    def average(self, x: Float[Tensor, "*batch head_dim head_dim"]) -> Float[Tensor, "*batch head_dim head_dim"]:
        """Mean of `Rot(r)ᵀ x Rot(r)` over the window; that of `Rot(r) x Rot(r)ᵀ` is the same."""
        cosines, sines = (table.to(x.dtype) for table in self.tables)
        turned = -self.turned(self.turned(x).mT).mT  # J x J, since Jᵀ = −J
        return cosines * x - sines * turned

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
