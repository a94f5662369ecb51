"""Shared latents: the closest map of rank r from a layer's input to several projections at once, in closed form.

A layer projects its input x (row vectors) with W = [W_K W_V], all heads together. A latent c = x B of r numbers stands
for all of them, x W ≈ c A. With the second moment S of x, and the metric G in which an error of x W is measured
(the Fisher information of the projected values), the expected error of a replacement Ŵ is

    tr(G (W − Ŵ)ᵀ S (W − Ŵ)),

and its minimum over matrices of rank r follows from one eigendecomposition (Eckart and Young 1936):

    H = (G + ε · mean(diag G) · I)^½
    U Λ = eigenvectors and eigenvalues of H Wᵀ S W H
    B = W H U_r,   A = U_rᵀ H⁻¹.

The error that remains is the sum of the discarded eigenvalues, so eigenvalues of several layers can be compared, and
`allocate` gives each layer the rank that keeps the largest of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 0.03  # of the mean of G's diagonal, added to it: a moment of finitely many tokens is too uneven


class Latent(NamedTuple):
    """`c = x @ from_input` stands for `x @ W`, which is about `c @ to_outputs`."""

    from_input: Float[Tensor, "dim rank"]
    to_outputs: Float[Tensor, "rank outputs"]


@dataclass(frozen=True, eq=False)
class LatentFit:
    """The closest latents of every rank for one layer; `values` are the eigenvalues Λ in descending order."""

    values: Float[Tensor, " outputs"]
    from_input: Float[Tensor, "dim outputs"]
    to_outputs: Float[Tensor, "outputs outputs"]

    def latent(self, rank: int) -> Latent:
        """The closest latent of width `rank`; each entry of c has second moment 1 on the inputs of the fit.

        Raises ValueError unless the rank is from 1 to the number of outputs.
        """
        if not 1 <= rank <= len(self.values):
            raise ValueError(f"a latent of width {rank} was asked for; expected 1 to {len(self.values)}")
        return Latent(self.from_input[:, :rank], self.to_outputs[:rank])

    def kept(self, rank: int) -> float:
        """Share of the metric that a latent of this width keeps: its eigenvalues over all of them."""
        return float(self.values[:rank].sum() / self.values.sum())


def fit_latent(
    W: Float[Tensor, "dim outputs"],
    input_moment: Float[Tensor, "dim dim"],
    metric: Float[Tensor, "outputs outputs"],
    *,
    scale_moment: Float[Tensor, "dim dim"] | None = None,
    ridge: float = RIDGE,
) -> LatentFit:
    """The closest latents for the projections `W` of inputs with this second moment, in this metric; in float64.

    `scale_moment` is the second moment in which entries of c have variance 1 (default: `input_moment`). Where the
    latent holds more dimensions than the outputs have on these inputs, the further ones are scaled by their metric.

    Raises ValueError where a moment is not finite, or where nothing is left to fit because all of it is zero.
    """
    W, S, G = (matrix.detach().double() for matrix in (W, input_moment, metric))
    for name, matrix in (("weights", W), ("second moment of the inputs", S), ("metric of the outputs", G)):
        if not matrix.isfinite().all():
            raise ValueError(f"the {name} holds values that are NaN or infinite; expected finite ones")
    root, inverse = _roots(G, ridge)
    mapped = W @ root
    values, vectors = torch.linalg.eigh(mapped.mT @ S @ mapped)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if not float(values[0]) > 0:
        raise ValueError("the outputs are zero on all inputs, or have no gradient: there is nothing to fit a latent to")
    from_input, to_outputs = mapped @ vectors, vectors.mT @ inverse
    scale = _deviation(from_input, S if scale_moment is None else scale_moment.detach().double())
    return LatentFit(values, from_input / scale, to_outputs * scale[:, None])


def token_weighted(
    moment: Float[Tensor, "dim dim"], weighted: Float[Tensor, "dim dim"], share: float = 0.5
) -> Float[Tensor, "dim dim"]:
    """`(1 − share) · moment + share · weighted`, the second brought to the trace of the first.

    `moment` is E[xᵀx]; `weighted` is E[|g|² xᵀx] with the gradient g of each token's outputs, so that tokens whose
    keys and values matter count more.
    """
    factor = moment.diagonal().sum() / weighted.diagonal().sum()
    return (1 - share) * moment + share * factor * weighted


def allocate(values: Sequence[Float[Tensor, " _"]], total: int, least: int = 1) -> list[int]:
    """How many of each layer's descending eigenvalues to keep, `total` in all and at least `least` a layer.

    The sum of those kept is the largest possible. Raises ValueError where `total` is too small or more than there are.
    """
    sizes = [len(one) for one in values]
    if not least * len(sizes) <= total <= sum(sizes):
        raise ValueError(
            f"{total} latent dimensions cannot be shared out among {len(sizes)} layers; expected "
            f"{least * len(sizes)} to {sum(sizes)}"
        )
    spare = torch.cat([one[least:].double() for one in values])
    owner = torch.cat([torch.full((size - least,), layer) for layer, size in enumerate(sizes)])
    best = spare.sort(descending=True, stable=True).indices[: total - least * len(sizes)]
    return (torch.bincount(owner[best], minlength=len(sizes)) + least).tolist()


def _roots(G: Float[Tensor, "n n"], ridge: float) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """The symmetric square root of `G` with its ridge, and the inverse of that root."""
    values, vectors = torch.linalg.eigh(G)
    values = values.clamp(min=0) + ridge * G.diagonal().mean()
    if not float(values[-1]) > 0:
        raise ValueError("the metric of the outputs is zero: no gradient reached them")
    root = values.sqrt()
    return (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT


def _deviation(from_input: Float[Tensor, "dim n"], S: Float[Tensor, "dim dim"]) -> Float[Tensor, " n"]:
    """Root of the second moment of each column's latent; 1 where it is zero but for rounding."""
    found = (from_input * (S @ from_input)).sum(0).clamp(min=0).sqrt()
    return torch.where(found > found.max() * 1e-7, found, found.max())
