"""The head closest to a given one among those that share their query and key weights.

With A = W_Q and B = W_K of a head, a shared head has one matrix W of the same size and a small core C,

    k̂ = x W,   q̂ = k̂ C,   scores of the form   M̂ = W C Wᵀ.

Closest means the least `‖M − M̂‖` in the metric of the form: over isotropic inputs for a form made from weights, the
mean squared error of the (centred) scores for a form made from data. W is always a mixture of the two given matrices,
`W = A·from_query + B·from_key`. So Gram matrices determine it, and one mixture serves weights, biases and activations.

| function | core C | optimal |
|---|---|---|
| `best_tied` | identity | yes: the positive part of `sym(M)`, of rank ≤ head_dim |
| `best_signed` | diag(±1) | yes, also among all symmetric cores: the eigenvalues of `sym(M)` farthest from 0 |
| `best_core` | any | a local optimum |
| `core_on_keys` | any | yes, given W = W_K |
| `copied_queries` | identity | no: W = W_Q, the baseline without a fit |

Under rotary positions see `closed_form_rotary`.

Scores on data also contain a term of the key alone, `q̄·(k−k̄)`, often most of their variance. A shared head keeps it
through its bias (`shared_bias`), as far as it lies in the column space of W. With `key_only=True` W is fitted to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear.form import BilinearForm
from querykey.bilinear.gram import inner, paired, ratio
from querykey.bilinear.rotation import Rotation


class SharedHead(NamedTuple):
    """`W = W_Q @ from_query + W_K @ from_key`, keys `x W`, queries `x W @ core`; each (..., head_dim, head_dim)."""

    from_query: Float[Tensor, "*heads head_dim head_dim"]
    from_key: Float[Tensor, "*heads head_dim head_dim"]
    core: Float[Tensor, "*heads head_dim head_dim"]

    def mixed(
        self, queries: Float[Tensor, "*heads rows head_dim"], keys: Float[Tensor, "*kv_heads rows head_dim"]
    ) -> Float[Tensor, "*heads rows head_dim"]:
        """W from W_Q and W_K; or shared keys from queries and keys; or their bias from both biases, as one row.

        With grouped keys, every query head gets a W of its own.
        """
        grouped_q, grouped_k = paired(queries, keys)
        shape = (*grouped_q.shape[:2], *self.core.shape[-2:])
        from_query, from_key = (m.to(queries.dtype).view(shape) for m in (self.from_query, self.from_key))
        return (grouped_q @ from_query + grouped_k[:, None] @ from_key).view(queries.shape)

    def kept(
        self, form: BilinearForm, rotation: Rotation | None = None, *, key_only: bool = False
    ) -> Float[Tensor, "*heads"]:
        """`1 − ‖M − M̂‖²/‖M‖²` in the metric of `form`; with a `rotation`, of the means over its window.

        With `key_only`, of the form and the key-only term together, the latter with `shared_bias`. Raises ValueError
        for `key_only` with a rotation, under which that term depends on the distance.
        """
        if key_only and rotation is not None:
            raise ValueError("under a rotation no term of the scores depends on the key alone; leave out key_only")
        agreement, own = self.products(form, rotation)
        kept = 2 * agreement - own
        query_gram = form.query_gram if rotation is None else rotation.average(form.query_gram)
        energy = inner(query_gram, form.key_gram)
        energy = torch.where(energy > form.noise, energy, 0)
        if key_only:
            kept = kept + inner(self._wanted_query(form), self.mixture.mT @ form.root.root @ form.key_term)
            energy = energy + inner(form.key_term, form.key_term)
        return ratio(kept, energy)

    @property
    def mixture(self) -> Float[Tensor, "*heads both head_dim"]:
        """W in terms of `[W_Q W_K]`."""
        return torch.cat([self.from_query, self.from_key], -2)

    def products(
        self, form: BilinearForm, rotation: Rotation | None
    ) -> tuple[Float[Tensor, "*heads"], Float[Tensor, "*heads"]]:
        """`⟨M, M̂⟩` and `‖M̂‖²`, with a `rotation` as means over its window."""
        mixed = form.gram @ self.mixture  # [AᵀW; BᵀW]
        gram = self.mixture.mT @ mixed  # WᵀW
        left, own = mixed[..., : form.head_dim, :] @ self.core, self.core.mT @ gram @ self.core
        if rotation is not None:
            left, own = rotation.average(left), rotation.average(own)
        return inner(left, mixed[..., form.head_dim :, :]), inner(own, gram)

    def _wanted_query(self, form: BilinearForm) -> Float[Tensor, "*heads head_dim 1"]:
        """The mean query that fits the key-only term best, by least squares over the centred keys."""
        gram = self.mixture.mT @ form.gram @ self.mixture
        inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
        return inverse @ (self.mixture.mT @ form.root.root @ form.key_term)


def best_tied(form: BilinearForm, *, key_only: bool = False) -> SharedHead:
    """The best head with W_Q = W_K = W: `W Wᵀ` is the positive part of `sym(M)`, which has rank ≤ head_dim.

    It keeps `form.tied_share`; columns of W beyond that rank are 0. With `key_only`, one dimension of the head may
    carry the key-only term, at the cost of the smallest eigenvalue, where that keeps more of both together.
    """
    return _symmetric(form, key_only, signed=False)


def best_signed(form: BilinearForm, *, key_only: bool = False) -> SharedHead:
    """The best head with `M̂ = W diag(±1) Wᵀ`: the head_dim eigenvalues of `sym(M)` that are largest in absolute value.

    It keeps `form.signed_share`. `key_only` as in `best_tied`.
    """
    return _symmetric(form, key_only, signed=True)


def best_core(form: BilinearForm, iterations: int = 20, *, key_only: bool = False) -> SharedHead:
    """A head `M̂ = W C Wᵀ` with any core: W is an orthonormal basis of a projection P with large `‖P M P‖²`.

    There is no closed form for the best P (the model is DEDICOM, Harshman 1978). The best of four starts, two of them
    the column spaces of `core_on_keys` and `best_signed`, is improved by taking the leading eigenvectors of
    `M P Mᵀ + Mᵀ P M + μP` again and again. The best P of all is returned, so it keeps at least what those two keep. On
    the heads of MiniLM, gradient descent from many starts kept 0.004 of 1 more in the median and 0.026 at most. With
    `key_only`, `‖P g‖²` counts too, g being the key-only term.
    """
    M, n = form.core, form.head_dim
    g = form.key_term if key_only else M[..., :0]
    shift = (form.energy / (2 * n)).sqrt()[..., None, None]  # μ: without it P can alternate between two subspaces
    start = torch.cat([M, M.mT, g], -1)
    best = _leading(start @ start.mT, n)[1]
    for other in (form.root.root[..., n:, :].mT, form.root.root[..., :n, :].mT, _leading(M + M.mT, n, signed=True)[1]):
        best = _better(M, g, torch.linalg.qr(other).Q, best)
    basis = best
    for _ in range(iterations):
        images = torch.cat([M @ basis, M.mT @ basis, shift * basis, g], -1)
        basis = _leading(images @ images.mT, n)[1]
        best = _better(M, g, basis, best)
    return _head(form, best, best.mT @ M @ best)


def core_on_keys(form: BilinearForm) -> SharedHead:
    """W = W_K and the best core for it, `W_Q ≈ W_K C`: least squares, `C = (BᵀB)⁻¹ BᵀA`.

    It is best at every distance of rotary positions too. With the right bias it keeps all of the key-only term.
    """
    inverse = form.key_root.inverse
    core = inverse.mT @ inverse @ form.cross_gram.mT
    return SharedHead(torch.zeros_like(core), identity(form), core)


def copied_queries(form: BilinearForm) -> SharedHead:
    """W = W_Q: the queries in place of the keys, without a fit."""
    same = identity(form)
    return SharedHead(same, torch.zeros_like(same), same)


def shared_bias(head: SharedHead, form: BilinearForm) -> Float[Tensor, "*heads head_dim"]:
    """What to add to the shared keys `k̂`, and so through the core to the queries, to keep the key-only term of scores.

    In place of `q̄·k` the shared head has `(k̂̄ + bias) C · k̂`, and the bias makes that the least-squares fit over the
    data of `form`, which must have means. It is added to the bias that `head.mixed` makes of the two given biases, and
    it is optimal given the head. A singular core is inverted on its range.
    """
    wanted = head._wanted_query(form)
    assert form.mean is not None  # checked by the line above
    mean = head.mixture.mT @ form.mean[..., None].to(form.gram.dtype)
    bias: Tensor = torch.linalg.pinv(head.core).mT @ wanted - mean
    return bias[..., 0]


def _symmetric(form: BilinearForm, key_only: bool, signed: bool) -> SharedHead:
    """The leading eigenvectors of `sym(M)`, for `key_only` of `sym(M)` bordered by the key-only term.

    On inputs with a constant 1 appended, the scores of a tied head with a bias are a symmetric matrix too, with g/√2 as
    border (the factor makes its error count once) and a corner that the softmax removes. So the corner is free. Two
    values are tried: the mean score of the given head, with which a shared head is recovered, and one so large that a
    dimension is given to the border alone (within 0.004 of the best of many descents on MiniLM).
    """
    symmetric = (form.core + form.core.mT) / 2
    if not key_only:
        return _scaled(form, symmetric, signed)
    border = form.key_term / 2**0.5
    assert form.mean is not None  # checked by the line above
    query_mean, key_mean = form.mean.to(border.dtype)[..., None].chunk(2, -2)
    size = ratio(inner(border, border), inner(symmetric, symmetric).sqrt())
    heads = []
    for corner in (inner(query_mean, key_mean) / 2, 30 * size):
        below = torch.cat([border.mT, corner[..., None, None]], -1)
        heads.append(_scaled(form, torch.cat([torch.cat([symmetric, border], -1), below], -2), signed))
    return most([head.kept(form, key_only=True) for head in heads], heads)


def _scaled(form: BilinearForm, symmetric: Float[Tensor, "*heads size size"], signed: bool) -> SharedHead:
    """`W diag(signs) Wᵀ` from the leading eigenvectors of a matrix in the basis of `form.core`, bordered or not."""
    values, vectors = _leading(symmetric, form.head_dim, signed)
    values = values if signed else values.clamp(min=0)
    scaled = vectors * values.abs().sqrt()[..., None, :]
    return _head(form, scaled[..., : form.gram.shape[-1], :], torch.where(values < 0, -1.0, 1.0).diag_embed())


def most(kept: Sequence[Float[Tensor, "*heads"]], heads: Sequence[SharedHead]) -> SharedHead:
    """For each head the candidate that keeps most; the first of equal ones."""
    best = torch.stack(list(kept)).argmax(0)[..., None, None]
    chosen = []
    for parts in zip(*heads, strict=True):
        stacked = torch.stack(parts)
        chosen.append(stacked.take_along_dim(best.expand(stacked.shape[1:])[None], 0)[0])
    return SharedHead(*chosen)


def _leading(
    symmetric: Float[Tensor, "*heads size size"], n: int, signed: bool = False
) -> tuple[Float[Tensor, "*heads n"], Float[Tensor, "*heads size n"]]:
    """The n largest eigenvalues, by absolute value if `signed`, and their eigenvectors."""
    values, vectors = torch.linalg.eigh(symmetric)
    chosen = (values.abs() if signed else values).topk(n, dim=-1).indices
    return values.gather(-1, chosen), vectors.take_along_dim(chosen[..., None, :], -1)


def _better(
    M: Float[Tensor, "*heads both both"],
    g: Float[Tensor, "*heads both terms"],
    new: Float[Tensor, "*heads both head_dim"],
    old: Float[Tensor, "*heads both head_dim"],
) -> Float[Tensor, "*heads both head_dim"]:
    """Of two orthonormal bases the one on which M and g keep more, per head."""
    kept = [(P.mT @ M @ P).square().sum((-2, -1)) + (P.mT @ g).square().sum((-2, -1)) for P in (new, old)]
    return torch.where((kept[0] > kept[1])[..., None, None], new, old)


def identity(form: BilinearForm) -> Float[Tensor, "*heads head_dim head_dim"]:
    """An identity matrix of the head's size for each head."""
    return torch.eye(form.head_dim, dtype=form.gram.dtype, device=form.gram.device).expand_as(form.cross_gram)


def _head(
    form: BilinearForm, basis: Float[Tensor, "*heads both head_dim"], core: Float[Tensor, "*heads head_dim head_dim"]
) -> SharedHead:
    """The head whose W has these coordinates in the basis `[A B] inverseᵀ` of `form.core`."""
    mixture = form.root.inverse.mT @ basis
    return SharedHead(mixture[..., : form.head_dim, :], mixture[..., form.head_dim :, :], core.to(basis.dtype))
