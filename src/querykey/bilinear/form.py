"""The bilinear form M = W_Q W_Kᵀ of attention heads, measured through Gram matrices.

With A = W_Q and B = W_K of one head, each dim × head_dim, position i scores position j with `x_i M x_jᵀ / √head_dim`.
All measures except `directionality` follow from AᵀA, AᵀB and BᵀB:

    ‖M‖² = ⟨AᵀA, BᵀB⟩      tr(MM) = ⟨AᵀB, (AᵀB)ᵀ⟩      tr M = tr(AᵀB)

With `[A B] = O Lᵀ` (O orthonormal, L Lᵀ the Gram matrix), `M = O (L_qᵀ L_k) Oᵀ`: the spectrum of the symmetric part
`sym(M) = (M + Mᵀ)/2` is that of a matrix of twice the head size. With the covariance of a head's own queries and keys
in place of the Gram matrices, the same formulas measure the head on data.

Conventions: heads are leading dimensions, and every measure keeps them. For a zero head, every ratio, rank and count
is 0. Accuracy is that of Gram matrices: relative to the largest one, eigenvalues and singular values have an error of
about eps in regular heads and √eps where A or B loses rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querykey.bilinear.gram import Root, inner, joint_gram, ratio, square_root

# fmt: off
METRICS = (
    "norm", "symmetry", "tied_share", "negative_share", "signed_share", "positive", "negative",
    "effective_rank", "stable_rank", "distance", "overlap", "directionality",
)
# fmt: on
"""Names of the measures with one number per head; `directionality` exists only for forms made from weights."""


@dataclass(frozen=True, eq=False)
class BilinearForm:
    """`M = W_Q W_Kᵀ` of any number of heads; made by `from_weights` or `from_covariance`.

    - `gram`: `[A B]ᵀ[A B]`, (..., 2·head_dim, 2·head_dim).
    - `row_norms`, `column_norms`: norms of the rows and columns of M, (..., dim), of a form made from weights.
    - `mean`: the mean of `[q k]` of a form made from data, (..., 2·head_dim), or None.
    """

    gram: Float[Tensor, "*heads both both"]
    row_norms: Float[Tensor, "*heads dim"] | None = field(default=None, repr=False)
    column_norms: Float[Tensor, "*heads dim"] | None = field(default=None, repr=False)
    mean: Float[Tensor, "*heads both"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the size and the values."""
        if self.gram.shape[-1] % 2:
            raise ValueError(f"a joint Gram matrix has an even size (queries, then keys), not {self.gram.shape[-1]}")
        if not self.gram.sum().isfinite():  # any NaN or infinity makes the sum one
            raise ValueError("the queries or keys of this form hold NaN or infinity; expected finite numbers")

    @classmethod
    def from_weights(
        cls,
        W_Q: Float[Tensor, "*heads dim head_dim"],
        W_K: Float[Tensor, "*kv_heads dim head_dim"],
        *,
        dtype: torch.dtype = torch.float64,
    ) -> BilinearForm:
        """The form of each query head; with grouped keys, query head h reads key head `h // (heads per group)`.

        The measures are those of scores on isotropic inputs. `dtype` is the precision of all that follows, whatever
        the type of the weights. Raises ValueError for shapes that do not pair, NaN and infinity.
        """
        return cls(*joint_gram(W_Q, W_K, dtype, norms=True))

    @classmethod
    def across(
        cls,
        W_Q: Float[Tensor, "*heads dim head_dim"],
        W_K: Float[Tensor, "*heads key_dim head_dim"],
        *,
        dtype: torch.dtype = torch.float64,
    ) -> BilinearForm:
        """The form of cross-attention: queries and keys have inputs of their own, so AᵀB is 0.

        Its norm and ranks are those of M. What compares W_Q with W_K, or M with Mᵀ, has no meaning.
        """
        dims = W_Q.shape[-2], W_K.shape[-2]
        W_Q, W_K = F.pad(W_Q, (0, 0, 0, dims[1])), F.pad(W_K, (0, 0, dims[0], 0))
        return cls(joint_gram(W_Q, W_K, dtype).gram)

    @classmethod
    def from_covariance(
        cls,
        covariance: Float[Tensor, "*heads both both"],
        mean: Float[Tensor, "*heads both"] | None = None,
    ) -> BilinearForm:
        """The form whose Gram matrices are the covariance of `[q k]`, (..., 2·head_dim, 2·head_dim).

        A score is `q·k = (q−q̄)·(k−k̄) + q̄·(k−k̄) + q·k̄`. The last term is the same for all keys, so the softmax removes
        it. The middle term depends on the key alone; a term that the softmax removes makes it symmetric, so it says
        nothing about symmetry. The form is the first term. The `mean` of `[q k]` adds the middle term, for
        `key_only_share` and for shared heads that are to fit it too.
        """
        return cls(covariance, mean=mean)

    # --- size and symmetry -------------------------------------------------------------------------------------------

    @property
    def head_dim(self) -> int:
        """Size of a query and of a key."""
        return self.gram.shape[-1] // 2

    @property
    def query_gram(self) -> Float[Tensor, "*heads head_dim head_dim"]:
        """AᵀA."""
        return self.gram[..., : self.head_dim, : self.head_dim]

    @property
    def cross_gram(self) -> Float[Tensor, "*heads head_dim head_dim"]:
        """AᵀB."""
        return self.gram[..., : self.head_dim, self.head_dim :]

    @property
    def key_gram(self) -> Float[Tensor, "*heads head_dim head_dim"]:
        """BᵀB."""
        return self.gram[..., self.head_dim :, self.head_dim :]

    @cached_property
    def energy(self) -> Float[Tensor, "*heads"]:
        """`‖M‖²`, or 0 if it is within rounding."""
        energy = inner(self.query_gram, self.key_gram)
        return torch.where(energy > self.noise, energy, 0)

    @cached_property
    def norm(self) -> Float[Tensor, "*heads"]:
        """Frobenius norm of M, without the 1/√head_dim of the scores."""
        return self.energy.sqrt()

    @cached_property
    def symmetry(self) -> Float[Tensor, "*heads"]:
        """`tr(MM)/‖M‖²`: 1 symmetric, −1 antisymmetric, 1/dim on average for random heads.

        The symmetry score of Saponati et al. 2025 (arXiv 2502.10927), there computed for the sum over a layer's heads.
        """
        return ratio(inner(self.cross_gram, self.cross_gram.mT), self.energy)

    # --- the symmetric part ------------------------------------------------------------------------------------------

    @cached_property
    def eigenvalues(self) -> Float[Tensor, "*heads both"]:
        """The 2·head_dim eigenvalues of `sym(M)` that can differ from 0, ascending."""
        eigenvalues: Tensor = torch.linalg.eigvalsh(self.core + self.core.mT) / 2
        return eigenvalues

    @cached_property
    def tied_share(self) -> Float[Tensor, "*heads"]:
        """Energy of M that the best head with W_Q = W_K keeps, as a share of 1: the positive part of `sym(M)`.

        `tied_share + negative_share = (1 + symmetry)/2`.
        """
        return ratio(self.eigenvalues.clamp(min=0).square().sum(-1), self.energy)

    @cached_property
    def negative_share(self) -> Float[Tensor, "*heads"]:
        """Energy in the negative part of `sym(M)`: symmetric, but impossible with W_Q = W_K."""
        return ratio(self.eigenvalues.clamp(max=0).square().sum(-1), self.energy)

    @cached_property
    def signed_share(self) -> Float[Tensor, "*heads"]:
        """Energy that the best `W diag(±1) Wᵀ` of the same head size keeps: the head_dim largest |eigenvalues|."""
        return ratio(self.eigenvalues.square().topk(self.head_dim, dim=-1).values.sum(-1), self.energy)

    @cached_property
    def positive(self) -> Int[Tensor, "*heads"]:
        """Number of positive eigenvalues of `sym(M)`; at most head_dim."""
        return (self.eigenvalues > self._tolerance).sum(-1)

    @cached_property
    def negative(self) -> Int[Tensor, "*heads"]:
        """Number of negative eigenvalues of `sym(M)`; at most head_dim."""
        return (self.eigenvalues < -self._tolerance).sum(-1)

    # --- rank --------------------------------------------------------------------------------------------------------

    @cached_property
    def singular_values(self) -> Float[Tensor, "*heads head_dim"]:
        """The head_dim singular values of M that can differ from 0, descending."""
        values: Tensor = torch.linalg.svdvals(self.query_root.root.mT @ self.key_root.root)
        return values

    @cached_property
    def effective_rank(self) -> Float[Tensor, "*heads"]:
        """`exp(−Σ p log p)` with `p = σ/Σσ` (Roy & Vetterli 2007): between 1 and head_dim."""
        total = self.singular_values.sum(-1, keepdim=True)
        entropy = torch.special.entr(ratio(self.singular_values, total)).sum(-1)
        return torch.where(self.energy > 0, entropy.exp(), 0)

    @cached_property
    def stable_rank(self) -> Float[Tensor, "*heads"]:
        """`‖M‖²/σ₁²`: between 1 and head_dim."""
        largest = self.singular_values[..., 0].square()
        return torch.where(self.energy > 0, ratio(self.energy, largest), 0)

    # --- W_Q and W_K -------------------------------------------------------------------------------------------------

    @cached_property
    def distance(self) -> Float[Tensor, "*heads"]:
        """Distance between W_Q and W_K up to the gauge that leaves scores unchanged: `1 − tr(M)/‖M‖_*`, in [0, 2].

        Scores do not change under W_Q → W_Q R, W_K → W_K R⁻ᵀ. Since `min_R ‖AR‖² + ‖BR⁻ᵀ‖² = 2‖M‖_*` (the nuclear
        norm) and the cross term is always tr(M), this is `min_R ‖AR − BR⁻ᵀ‖²` over that minimum: one minus the cosine
        between the balanced W_Q and W_K. 0 for tied heads, 1 on average for random heads, 2 for W_Q = −W_K.
        """
        trace = self.cross_gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        distance = 1 - ratio(trace, self.singular_values.sum(-1))
        return torch.where(self.energy > 0, distance, 0)

    @cached_property
    def overlap(self) -> Float[Tensor, "*heads"]:
        """Mean squared cosine of the principal angles between the column spaces of W_Q and W_K.

        1 if one space contains the other, head_dim/dim on average for random heads.
        """
        whitened = self.query_root.inverse @ self.cross_gram @ self.key_root.inverse.mT
        smaller = torch.minimum(self.query_root.rank, self.key_root.rank)
        return ratio(inner(whitened, whitened), smaller.to(self.gram.dtype)).clamp(max=1)

    @cached_property
    def directionality(self) -> Float[Tensor, "*heads"]:
        """`(r − c)/(r + c)`, r and c the excess of row and column norms of M over their mean + 2 std; in [−1, 1].

        The score of Saponati et al. 2025 (arXiv 2502.10927) with the sign of their tables, where decoders are
        negative: a few columns (keys) are large. The std is the unbiased one, and the score is 0 where nothing exceeds.
        The only measure that depends on the basis of the model dimension. Raises ValueError for a form made from data.
        """
        if self.row_norms is None or self.column_norms is None:
            raise ValueError("directionality is a property of weights; this form was made from activations")
        rows, columns = _excess(self.row_norms), _excess(self.column_norms)
        return torch.where(self.energy > 0, ratio(rows - columns, rows + columns), 0)

    @cached_property
    def key_only_share(self) -> Float[Tensor, "*heads"]:
        """On data, the share of the variance of scores over keys that is the same for every query: `q̄ᵀΣ_kk q̄` of 1.

        Raises ValueError for a form without means.
        """
        key_only = inner(self.key_term, self.key_term)
        return ratio(key_only, key_only + self.energy)

    def metrics(self, names: Iterable[str] = METRICS) -> dict[str, Tensor]:
        """Those of these measures that this form has, by name, each of shape (...heads)."""
        return {name: getattr(self, name) for name in names if name != "directionality" or self.row_norms is not None}

    def part(self, dimensions: Bool[Tensor, "head_dim"]) -> BilinearForm:
        """The form of some head dimensions: `A_s B_sᵀ` with the chosen columns."""
        chosen = dimensions.repeat(2)
        return BilinearForm(self.gram[..., chosen, :][..., chosen])

    # --- shared by the measures --------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> Root:
        """Square root of the joint Gram matrix."""
        return square_root(self.gram)

    @cached_property
    def core(self) -> Float[Tensor, "*heads both both"]:
        """`L_qᵀ L_k`: M in an orthonormal basis of the joint column space of W_Q and W_K."""
        root = self.root.root
        return root[..., : self.head_dim, :].mT @ root[..., self.head_dim :, :]

    @cached_property
    def key_term(self) -> Float[Tensor, "*heads both 1"]:
        """`L_kᵀ q̄`: the key-only term `q̄·(k−k̄)` of the scores, a vector in the basis of `core`."""
        if self.mean is None:
            raise ValueError("the key-only term needs the means of queries and keys: make the form from activations")
        mean = self.mean[..., : self.head_dim, None].to(self.gram.dtype)
        return self.root.root[..., self.head_dim :, :].mT @ mean

    @cached_property
    def query_root(self) -> Root:
        """Square root of AᵀA."""
        return square_root(self.query_gram)

    @cached_property
    def key_root(self) -> Root:
        """Square root of BᵀB."""
        return square_root(self.key_gram)

    @cached_property
    def noise(self) -> Float[Tensor, "*heads"]:
        """The rounding error of `‖M‖²`."""
        return self.head_dim * torch.finfo(self.gram.dtype).eps * self._scale.square()

    @cached_property
    def _scale(self) -> Float[Tensor, "*heads"]:
        """`√(‖AᵀA‖ ‖BᵀB‖)`, an upper bound of the largest singular value: rounding errors are relative to it."""
        norms = [inner(gram, gram).sqrt() for gram in (self.query_gram, self.key_gram)]
        return (norms[0] * norms[1]).sqrt()

    @cached_property
    def _tolerance(self) -> Float[Tensor, "*heads 1"]:
        """The rounding error of an eigenvalue that is 0: a Gram matrix keeps half of its digits."""
        return self._scale[..., None] * sqrt(torch.finfo(self.gram.dtype).eps)


def _excess(norms: Float[Tensor, "*heads dim"]) -> Float[Tensor, "*heads"]:
    """The sum of what norms exceed their mean + 2 std by."""
    threshold = norms.mean(-1, keepdim=True) + 2 * norms.std(-1, keepdim=True)
    return (norms - threshold).clamp(min=0).sum(-1)
