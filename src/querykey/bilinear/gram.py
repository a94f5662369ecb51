"""Gram matrices of the queries and keys of heads, and their square roots.

Every measure of `M = W_Q W_Kᵀ` that does not depend on the basis of the model dimension follows from

    gram = [W_Q W_K]ᵀ [W_Q W_K]        (2·head_dim × 2·head_dim),

so no dim × dim matrix is formed. Its blocks are AᵀA, AᵀB and BᵀB with A = W_Q and B = W_K.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Heads(NamedTuple):
    """The joint Gram matrix of each query head and, if requested, the norms of the rows and columns of its M."""

    gram: Float[Tensor, "*heads both both"]
    row_norms: Float[Tensor, "*heads dim"] | None
    column_norms: Float[Tensor, "*heads dim"] | None


def joint_gram(
    W_Q: Float[Tensor, "*heads dim head_dim"],
    W_K: Float[Tensor, "*kv_heads dim head_dim"],
    dtype: torch.dtype = torch.float64,
    *,
    norms: bool = False,
) -> Heads:
    """`[A B]ᵀ [A B]` of each query head, computed in `dtype`, with the norms of rows and columns of M if `norms`.

    Keys may be grouped as in `paired`. Only one group at a time is converted to `dtype`, so the extra memory does not
    grow with the number of heads. No gradient is recorded.
    """
    queries, keys = paired(W_Q.detach(), W_K.detach())
    kv_heads, group, dim, n = queries.shape
    gram = torch.empty(kv_heads, group, 2 * n, 2 * n, dtype=dtype, device=W_Q.device)
    found = torch.empty(2, kv_heads, group, dim if norms else 0, dtype=dtype, device=W_Q.device)
    for i in range(kv_heads):
        q, k = queries[i].to(dtype), keys[i].to(dtype)
        upper = q.mT @ torch.cat([q, k.expand_as(q)], -1)
        gram[i, :, :n] = upper
        gram[i, :, n:, :n] = upper[..., n:].mT
        gram[i, :, n:, n:] = k.mT @ k
        if norms:
            found[:, i] = _squared_norms(q, k, gram[i])
    shape = W_Q.shape[:-2]
    rows, columns = found.clamp(min=0).sqrt().view(2, *shape, -1) if norms else (None, None)
    return Heads(gram.view(*shape, 2 * n, 2 * n), rows, columns)


def paired(
    W_Q: Float[Tensor, "*heads rows head_dim"], W_K: Float[Tensor, "*kv_heads rows head_dim"]
) -> tuple[Float[Tensor, "kv_heads group rows head_dim"], Float[Tensor, "kv_heads rows head_dim"]]:
    """Query heads grouped by the key head that they read: query head h reads key head `h // (heads per group)`.

    The leading dimensions must agree, except that the last of them may be a multiple for `W_Q`. All are flattened into
    one. Raises ValueError if the shapes do not pair.
    """
    heads, kv_heads = W_Q.shape[:-2], W_K.shape[:-2]
    if W_Q.shape[-2:] != W_K.shape[-2:]:
        raise ValueError(
            f"W_Q {tuple(W_Q.shape)} and W_K {tuple(W_K.shape)} differ in their last two sizes: queries and keys need "
            "the same input size and the same head size"
        )
    fits = len(heads) == len(kv_heads) and heads[:-1] == kv_heads[:-1]
    if not fits or (heads and (kv_heads[-1] == 0 or heads[-1] % kv_heads[-1])):
        raise ValueError(
            f"W_Q {tuple(W_Q.shape)} and W_K {tuple(W_K.shape)} do not pair: expected (..., heads, dim, head_dim) and "
            "(..., kv_heads, dim, head_dim) with heads a multiple of kv_heads"
        )
    keys = W_K.reshape(-1, *W_K.shape[-2:])
    group = heads[-1] // kv_heads[-1] if heads else 1
    return W_Q.reshape(len(keys), group, *W_Q.shape[-2:]), keys


@dataclass(frozen=True, eq=False)
class Root:
    """A square root of Gram matrices: `root @ root.mT = gram`, lower triangular except for the `singular` ones.

    If `gram = XᵀX`, then `X = (X @ inverse.mT) @ root.mT`, and the columns of `X @ inverse.mT` are orthonormal (for X
    of lower rank: orthonormal on the row space of `root`).
    """

    root: Float[Tensor, "*batch n n"]
    singular: Bool[Tensor, "*batch"]

    @cached_property
    def inverse(self) -> Float[Tensor, "*batch n n"]:
        """Inverse of the root; the pseudo-inverse where the Gram matrix is singular up to rounding."""
        n, eps = self.root.shape[-1], torch.finfo(self.root.dtype).eps
        identity = torch.eye(n, dtype=self.root.dtype, device=self.root.device)
        regular = torch.where(self.singular[..., None, None], identity, self.root)
        inverse: Tensor = torch.linalg.solve_triangular(regular, identity, upper=False)
        least = sqrt(10 * n * eps)  # smallest relative singular value above rounding, which a Gram matrix squares
        condition = _squared_norm_bound(inverse) * _squared_norm_bound(self.root)  # an upper bound of its square
        lacking = self.singular | (condition * least**2 > 1)
        if lacking.any():
            inverse[lacking] = torch.linalg.pinv(self.root[lacking], rtol=least)
        return inverse

    @cached_property
    def rank(self) -> Int[Tensor, "*batch"]:
        """Rank of the Gram matrix: the trace of the projection on its range."""
        return inner(self.inverse, self.root.mT).round().to(torch.int64)


def square_root(gram: Float[Tensor, "*batch n n"]) -> Root:
    """The Cholesky factor; for a singular Gram matrix its eigenvectors times the root of its eigenvalues."""
    root, info = torch.linalg.cholesky_ex(gram)
    singular = info != 0
    if singular.any():
        values, vectors = torch.linalg.eigh(gram[singular])
        root[singular] = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return Root(root, singular)


def inner(x: Float[Tensor, "*batch n m"], y: Float[Tensor, "*batch n m"]) -> Float[Tensor, "*batch"]:
    """Frobenius inner product."""
    return (x * y).sum((-2, -1))


def ratio(part: Float[Tensor, "*#batch"], whole: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
    """`part / whole`, and 0 where the whole is 0."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)


def _squared_norm_bound(x: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """An upper bound of the squared largest singular value: the largest column sum times the largest row sum."""
    if not x.shape[-1]:
        return x.sum((-2, -1))
    absolute = x.abs()
    return absolute.sum(-1).amax(-1) * absolute.sum(-2).amax(-1)


def _squared_norms(
    q: Float[Tensor, "group dim head_dim"], k: Float[Tensor, "dim head_dim"], gram: Float[Tensor, "group both both"]
) -> Float[Tensor, "2 group dim"]:
    """Squared norms of the rows and columns of `M = A Bᵀ`: `aᵢ BᵀB aᵢᵀ` for row i, `bⱼ AᵀA bⱼᵀ` for column j."""
    group, dim, n = q.shape
    rows = torch.linalg.vecdot(q @ gram[0, n:, n:], q)
    images = (k @ gram[:, :n, :n].transpose(0, 1).reshape(n, group * n)).view(dim, group, n)
    return torch.stack([rows, torch.linalg.vecdot(images, k[:, None]).mT])
