"""The best head with one projection for keys and values, in closed form.

Keys are used in `q·k` and values in `v W_O`. Without rotary positions any change of basis of k can be undone in W_Q,
and one of v in W_O. So one tensor `u = x W` can replace both,

    q·k ≈ (q S)·u,      v ≈ u T,      W_Q → W_Q S,   W_O → T W_O,

at no cost at run time. The best u spans as much as possible of `[K V]`, weighted by W_Q and W_O: a truncated singular
value decomposition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear.gram import inner, ratio, square_root


class SharedKeyValue(NamedTuple):
    """`u = k @ from_key + v @ from_value` in place of keys and values, so `W = W_K @ from_key + W_V @ from_value`.

    Queries become `q @ query_map`, and `output_map @ W_O` replaces W_O, for every query head that reads this key head.
    `score_share` and `value_share` are the kept shares of the variance of the scores and of the output.
    """

    from_key: Float[Tensor, "*heads key_dim size"]
    from_value: Float[Tensor, "*heads value_dim size"]
    query_map: Float[Tensor, "*heads key_dim size"]
    output_map: Float[Tensor, "*heads size value_dim"]
    score_share: Float[Tensor, "*heads"]
    value_share: Float[Tensor, "*heads"]


def best_key_value(
    covariance: Float[Tensor, "*heads both both"],
    query_moment: Float[Tensor, "*heads key_dim key_dim"],
    output_gram: Float[Tensor, "*heads value_dim value_dim"],
    *,
    size: int | None = None,
    balance: float = 1.0,
) -> SharedKeyValue:
    """The `size` (default: key_dim) directions that lose least of the scores and the output together.

    - `covariance` of a key head's `[k v]`, keys first, both centred: the mean key adds the same number to all scores of
      a query, and the mean value is a constant that belongs in the output's bias. Without such a bias, pass the second
      moment of the values. From weights alone: `[W_K W_V]ᵀ[W_K W_V]`.
    - `query_moment`: `E[qᵀq]`, (key_dim, key_dim), summed over the query heads that read this key head.
    - `output_gram`: `W_O W_Oᵀ` with the head's W_O as (value_dim, dim), summed likewise.
    - `balance`: weight of a lost share of the output against an equal lost share of the scores.

    Minimises `(1 − score_share) + balance · (1 − value_share)` over all u of that size (Eckart & Young 1936). Raises
    ValueError for sizes that do not fit together.
    """
    key_dim, value_dim = query_moment.shape[-1], output_gram.shape[-1]
    size = key_dim if size is None else size
    if covariance.shape[-1] != key_dim + value_dim or not 0 < size <= key_dim + value_dim:
        raise ValueError(
            f"a covariance of size {covariance.shape[-1]} and a shared size of {size} do not fit keys of size "
            f"{key_dim} and values of size {value_dim}: expected {key_dim + value_dim}, and a size of 1 to that"
        )
    root = square_root(covariance)
    keys, values = root.root[..., :key_dim, :].mT, root.root[..., key_dim:, :].mT  # [K V] in an orthonormal basis
    scores, outputs = keys @ square_root(query_moment).root, values @ square_root(output_gram).root
    weighted = torch.cat([_normalised(scores), balance**0.5 * _normalised(outputs)], -1)
    basis = torch.linalg.svd(weighted, full_matrices=False).U[..., :size]
    mixture = root.inverse.mT @ basis
    return SharedKeyValue(
        mixture[..., :key_dim, :],
        mixture[..., key_dim:, :],
        keys.mT @ basis,
        basis.mT @ values,
        _kept(scores, basis),
        _kept(outputs, basis),
    )


def _normalised(x: Float[Tensor, "*heads both columns"]) -> Float[Tensor, "*heads both columns"]:
    norm = torch.linalg.matrix_norm(x)[..., None, None]
    return ratio(x, norm)


def _kept(x: Float[Tensor, "*heads both columns"], basis: Float[Tensor, "*heads both size"]) -> Float[Tensor, "*heads"]:
    projected = basis.mT @ x
    return ratio(inner(projected, projected), inner(x, x))
