"""The tied and the signed head closest to a given one under rotary positions, at all distances of a window.

W mixes the two given matrices as in `closed_form`, and has to commute with the rotation: a pair of dimensions is one
complex number, and the mixture multiplies it by another.

| function | core C | optimal |
|---|---|---|
| `best_tied_rotary` | identity | for windows that are long against all periods, and for a window of 1 |
| `best_signed_rotary` | ±1 per pair | for windows that are long against all periods |
"""

from __future__ import annotations

from math import inf

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from querykey.bilinear.closed_form import SharedHead, best_signed, best_tied, identity, most
from querykey.bilinear.form import BilinearForm
from querykey.bilinear.gram import inner, ratio
from querykey.bilinear.rotation import Rotation

SLOW, SHORT = 1.0, 32  # radians over a window up to which pairs are slow; windows in which all pairs may be


def best_tied_rotary(form: BilinearForm, rotation: Rotation) -> SharedHead:
    """A head with W_Q = W_K close to the given one at all distances of the window: one fit per pair of dimensions.

    Optimal in the limit of a window that is long against all differences of periods. A pair with complex columns
    `a = A₁ + iA₂` and `b` scores with `Re(a e^{irθ} bᴴ)`. Best for it is the positive part of the Hermitian part of
    `a bᴴ`: `w wᴴ` with `w = (‖b‖ a + ‖a‖ e^{−iψ} b) / (2√s)`, where `x + iy = bᴴa`, `s = √(‖a‖²‖b‖² − y²)` and
    `e^{−iψ} = (s − iy)/(‖a‖‖b‖)`. Dimensions that do not rotate are fitted together, by `best_tied`.

    In a finite window slow pairs hardly rotate. The best of heads is taken that fit no pair, the slow pairs or, in
    short windows, all pairs together with those dimensions, each times the factor (0 or more) that keeps most.
    """
    return kept_by_tied_rotary(form, rotation)[0]


def kept_by_tied_rotary(form: BilinearForm, rotation: Rotation) -> tuple[SharedHead, Float[Tensor, "*heads"]]:
    """The head of `best_tied_rotary` and the share that it keeps, which is never negative."""
    head = _tied_by_pairs(form, rotation)
    if rotation.window is None:
        return head, head.kept(form, rotation)
    limits = (SLOW, inf) if rotation.window <= SHORT else (SLOW,)
    slow = [rotation.angles * rotation.window <= limit for limit in limits]
    heads = [head, *(_with_block(head, form, dimensions) for dimensions in slow)]
    rescaled, kept = zip(*(_rescaled(one, form, rotation) for one in heads), strict=True)
    return most(kept, rescaled), torch.stack(kept).amax(0)


def best_signed_rotary(form: BilinearForm, rotation: Rotation) -> SharedHead:
    """A head `W diag(±1) Wᵀ` close to the given one at all distances, with one sign per pair so that they commute.

    The Hermitian part of `a bᴴ` has one eigenvalue of either sign; the larger one in absolute value is the positive
    one where `Re bᴴa ≥ 0`. Elsewhere this is the tied head of `−a, b`, with the sign −1. Pairs are fitted one by one in
    every window, since a fit that mixes pairs has no sign for each; a finite window sets the factor of the whole.
    """
    i, j = rotation.first, rotation.second
    trace = form.cross_gram.diagonal(dim1=-2, dim2=-1)
    signs = torch.ones_like(trace)
    signs[..., i] = signs[..., j] = torch.where(trace[..., i] + trace[..., j] < 0, -1.0, 1.0).to(trace)
    both = torch.cat([signs, torch.ones_like(signs)], -1)
    tied = _tied_by_pairs(BilinearForm(both[..., :, None] * form.gram * both[..., None, :]), rotation)
    from_query, from_key, core = signs[..., :, None] * tied.from_query, tied.from_key.clone(), signs.diag_embed()
    block, at = best_signed(form.part(rotation.still)), rotation.still.nonzero()
    for whole, part in zip((from_query, from_key, core), block, strict=True):
        whole[..., at, at.mT] = part
    head = SharedHead(from_query, from_key, core)
    return head if rotation.window is None else _rescaled(head, form, rotation)[0]


def _tied_by_pairs(form: BilinearForm, rotation: Rotation) -> SharedHead:
    """The tied fit of every pair alone, and of the other dimensions together."""
    i, j = rotation.first, rotation.second
    a, b = rotation.pair_norms(form.query_gram), rotation.pair_norms(form.key_gram)
    y = form.cross_gram[..., j, i] - form.cross_gram[..., i, j]
    s = ((a * b).square() - y.square()).clamp(min=0).sqrt()
    scale = ratio(torch.ones_like(s), 2 * s.sqrt())
    from_query, from_key = torch.zeros_like(form.cross_gram), torch.zeros_like(form.cross_gram)
    from_query[..., i, i] = from_query[..., j, j] = b * scale
    from_key[..., i, i] = from_key[..., j, j] = ratio(s * scale, b)
    from_key[..., j, i] = ratio(y * scale, b)
    from_key[..., i, j] = -from_key[..., j, i]
    block, at = best_tied(form.part(rotation.still)), rotation.still.nonzero()
    from_query[..., at, at.mT], from_key[..., at, at.mT] = block.from_query, block.from_key
    return SharedHead(from_query, from_key, identity(form))


def _with_block(head: SharedHead, form: BilinearForm, dimensions: Bool[Tensor, "head_dim"]) -> SharedHead:
    """`head`, a fit by pairs, but with these dimensions fitted together as if they did not rotate.

    `best_tied` leaves the basis of these dimensions free; it is the one closest to that of `head` (Procrustes).
    """
    part, at = form.part(dimensions), dimensions.nonzero()
    block = best_tied(part)
    pairs = torch.cat([head.from_query[..., at, at.mT], head.from_key[..., at, at.mT]], -2)
    U, _, Vh = torch.linalg.svd(block.mixture.mT @ part.gram @ pairs)
    from_query, from_key = head.from_query.clone(), head.from_key.clone()
    from_query[..., at, at.mT], from_key[..., at, at.mT] = block.from_query @ U @ Vh, block.from_key @ U @ Vh
    return SharedHead(from_query, from_key, head.core)


def _rescaled(head: SharedHead, form: BilinearForm, rotation: Rotation) -> tuple[SharedHead, Float[Tensor, "*heads"]]:
    """W times the factor with which the head keeps most, and what it keeps then.

    `M̂` times `f = ⟨M, M̂⟩/‖M̂‖²`, or 0 where that is negative, keeps `f ⟨M, M̂⟩` of `‖M‖²`.
    """
    agreement, own = head.products(form, rotation)
    gain = ratio(agreement, own).clamp(min=0)
    energy = inner(rotation.average(form.query_gram), form.key_gram)
    kept = ratio(gain * agreement, torch.where(energy > form.noise, energy, 0))
    factor = gain.sqrt()[..., None, None]
    return SharedHead(factor * head.from_query, factor * head.from_key, head.core), kept
