"""The value of every measure on random heads: Gaussian W_Q and W_K of the same shape.

`Null.source` is "exact" where a formula gives the mean for every dim and head_dim. The formulas use that a random
rotation of the model dimension, applied to W_K, does not change the distribution, and that the moments of such
rotations are known (Collins & Śniady 2006); that changing the sign of W_K swaps the positive and the negative part of
`sym(M)`; and that exchanging W_Q and W_K changes the sign of directionality. Everything else is "simulated", from
random heads. For large dim these are drawn as Gram matrices, at a cost that does not depend on dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear.form import METRICS, BilinearForm
from querykey.bilinear.gram import joint_gram
from querykey.bilinear.rotary import ROTARY_METRICS, RotaryForm
from querykey.bilinear.rotation import Rotation
from querykey.machine import at_once, one_thread


class Null(NamedTuple):
    """Mean and standard deviation of a measure over random heads, and how the mean was obtained."""

    mean: float
    std: float
    source: Literal["exact", "simulated"]


def null(
    dim: int,
    head_dim: int,
    generator: torch.Generator,
    *,
    draws: int = 64,
    rotation: Rotation | None = None,
    spectrum: Float[Tensor, "dim"] | None = None,
    measures: Sequence[str] = METRICS,
    rotary_measures: Sequence[str] = ROTARY_METRICS,
) -> dict[str, Null]:
    """The null of these measures of `BilinearForm`, by name; the norm has none.

    With a `rotation` also of the `rotary_measures` of `RotaryForm`, as `symmetry_rotary` and so on. For forms made from
    data, pass the `spectrum` of the covariance of the layer's inputs: the null is then that of random weights on such
    inputs, all of it simulated, without directionality. Raises ValueError for fewer than two dimensions or draws, and
    for a spectrum whose length is not dim.
    """
    if dim < 2 or draws < 2:
        raise ValueError(f"{dim} dimensions and {draws} draws; a null needs at least 2 of each")
    if spectrum is not None and len(spectrum) != dim:
        raise ValueError(
            f"the spectrum has {len(spectrum)} values; expected {dim}, one for each dimension of the inputs"
        )

    def measured(heads: BilinearForm) -> dict[str, Tensor]:
        values = heads.metrics(name for name in measures if name != "norm")
        if rotation is not None:
            rotary = RotaryForm(heads, rotation)
            values |= {f"{name}_rotary": getattr(rotary, name) for name in rotary_measures}
        return values

    size = max(2, 2**20 // (2 * head_dim) ** 2)  # of a part: bounds the memory for large heads
    counts = [min(size, draws - first) for first in range(0, draws, size)]
    with one_thread():
        heads = [random_heads(dim, head_dim, count, generator, spectrum) for count in counts]
    parts = list(at_once(measured, heads))
    simulated = {name: _simulated(torch.cat([values[name] for values in parts])) for name in parts[0]}
    if spectrum is not None:
        return simulated
    formulas = {name: one for name, one in _formulas(dim, head_dim).items() if name in measures}
    if "directionality" in simulated:
        formulas["directionality"] = formulas["directionality"]._replace(std=simulated["directionality"].std)
    return simulated | formulas


def random_heads(
    dim: int,
    head_dim: int,
    count: int,
    generator: torch.Generator,
    spectrum: Float[Tensor, "dim"] | None = None,
) -> BilinearForm:
    """The forms of `count` heads with standard normal weights, on isotropic inputs or on inputs with that `spectrum`.

    On isotropic inputs the joint Gram matrix is a Wishart matrix: `L Lᵀ` with L triangular, normal below the diagonal
    and with chi variables on it (Bartlett 1933). From dim 1024 on it is drawn in this way, with the chi variables as
    cubes of normal ones (Wilson & Hilferty 1931; close to exact at such sizes). Below, weights are drawn.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)

    if spectrum is None and dim >= max(1024, 4 * head_dim):
        both = 2 * head_dim
        lower = normal(count, both, both).tril()
        freedom = dim - torch.arange(both, dtype=torch.float64, device=generator.device)
        diagonal = lower.diagonal(dim1=-2, dim2=-1)
        cube_root = 1 - 2 / (9 * freedom) + diagonal * (2 / (9 * freedom)).sqrt()
        diagonal.copy_((freedom * cube_root**3).sqrt())
        return BilinearForm(lower @ lower.mT)
    W_Q, W_K = normal(count, dim, head_dim), normal(count, dim, head_dim)
    if spectrum is None:
        return BilinearForm.from_weights(W_Q, W_K)
    scale = spectrum.to(W_Q).clamp(min=0).sqrt()[:, None]
    return BilinearForm(joint_gram(scale * W_Q, scale * W_K).gram)


def _simulated(values: Tensor) -> Null:
    values = values.to(torch.float64)
    return Null(values.mean().item(), values.std().item(), "simulated")


def _formulas(d: int, k: int) -> dict[str, Null]:
    """Closed forms. With O a random rotation, `M Oᵀ` is as likely as M; the means below are means over O.

    - symmetry: `E tr(M Oᵀ M Oᵀ) = ‖M‖²/d`, and the fourth moments of O give the variance, in which the spectrum enters
      only through `Σσ⁴/(Σσ²)²`.
    - tied_share: half of `(1 + symmetry)/2` on average; around it the difference of both parts has variance
      `Σσ⁴/(Σσ²)²/d` to first order in 1/d.
    - overlap: `tr P_Q P_K` has mean `k²/d` and variance `2k²(d−k)²/(d²(d−1)(d+2))` over random subspaces.
    - directionality: to first order norms of rows and columns are independent and normal; what exceeds an estimated
      mean + 2 std then sums to .008491·d with variance .003758·d, in units of the std. For small dim the spread is
      smaller.
    """
    spread = _fourth_moment(d, k)
    symmetry = 3 * (d + 1) / (d * (d - 1) * (d + 2)) - 1 / d**2 - 6 * spread / (d * (d - 1) * (d + 2))
    half = Null((1 + 1 / d) / 4, sqrt(symmetry / 16 + spread / (4 * d)), "exact")
    angle = max(d - k, 0) / d * sqrt(2 / ((d - 1) * (d + 2)))
    return {
        "symmetry": Null(1 / d, sqrt(symmetry), "exact"),
        "tied_share": half,
        "negative_share": half,
        "overlap": Null(min(k / d, 1.0), angle, "exact"),
        "directionality": Null(0.0, sqrt(2 * 0.003758 / d) / (2 * 0.008491), "exact"),
    }


def _fourth_moment(d: int, k: int) -> float:
    """`Σσ⁴/(Σσ²)²` of a Gaussian head, as the ratio of both expectations."""
    fourth = d * (d + 1) * k * d * (d + k + 1) + d * (k**2 * d**2 + 2 * k * d)
    square = d**2 * (k**2 * d**2 + 2 * k * d) + 2 * d * k * d * (d + k + 1)
    return fourth / square
