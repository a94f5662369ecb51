"""Measures of heads under rotary positions, where the form at distance r is `M(r) = A Rot(r) Bᵀ`.

A tied head still gives symmetric scores, because `M(r)ᵀ = M(−r)`. So the symmetry to measure is

    mean of tr(M(r) M(−r))  over  mean of ‖M(r)‖²,

and not that of `tr(M(r)²)`. Means are those of `Rotation`. All measures of a zero head are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear.closed_form_rotary import kept_by_tied_rotary
from querykey.bilinear.form import BilinearForm
from querykey.bilinear.gram import inner, ratio
from querykey.bilinear.rotation import Rotation

ROTARY_METRICS = ("symmetry", "tied_share", "distance")


@dataclass(frozen=True, eq=False)
class RotaryForm:
    """Heads and the rotation of their scores. Raises ValueError if the head sizes differ."""

    form: BilinearForm
    rotation: Rotation

    def __post_init__(self) -> None:
        """Check the head sizes."""
        if self.form.head_dim != self.rotation.head_dim:
            raise ValueError(
                f"the rotation is for heads of size {self.rotation.head_dim}, these heads have {self.form.head_dim}"
            )

    @cached_property
    def energy(self) -> Float[Tensor, "*heads"]:
        """Mean of `‖M(r)‖²`, or 0 if it is within rounding."""
        energy = inner(self.rotation.average(self.form.query_gram), self.form.key_gram)
        return torch.where(energy > self.form.noise, energy, 0)

    @cached_property
    def symmetry(self) -> Float[Tensor, "*heads"]:
        """1 for tied heads, −1 for W_Q = W_K with every pair rotated by a right angle, near 0 for random heads."""
        cross = self.form.cross_gram
        return ratio(inner(self.rotation.average(cross.mT), cross), self.energy)

    @cached_property
    def tied_share(self) -> Float[Tensor, "*heads"]:
        """Energy that the head of `best_tied_rotary` keeps, as a share of 1; never negative.

        A lower bound of what a head with W_Q = W_K can keep, exact for long windows and for distance 0 alone;
        `(1 + symmetry)/2` is an upper bound.
        """
        return kept_by_tied_rotary(self.form, self.rotation)[1]

    @cached_property
    def distance(self) -> Float[Tensor, "*heads"]:
        """Distance between W_Q and W_K up to the gauge that leaves rotary scores unchanged, in [0, 2].

        Only one complex number per pair commutes with the rotation, so with the complex columns a_j, b_j of A and B
        `min_R ‖AR − BR⁻ᵀ‖² = 2(Σ‖a_j‖‖b_j‖ − tr M)`. Dimensions that do not rotate keep their full gauge and enter with
        the nuclear norm of their form. 0 for tied heads, 1 on average for random heads, as in `BilinearForm.distance`.
        """
        trace = self.form.cross_gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        balanced = self.rotation.pair_norms(self.form.query_gram) * self.rotation.pair_norms(self.form.key_gram)
        still = self.form.part(self.rotation.still).singular_values
        distance = 1 - ratio(trace, balanced.sum(-1) + still.sum(-1))
        return torch.where(self.energy > 0, distance, 0)
