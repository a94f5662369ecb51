"""One row per head: every measure of its form W_Q W_Kᵀ, beside what random heads of the same shape have.

A measure `m` has up to three columns: `m`, and where there is a null `m_null` and `m_null_sd`, its mean and standard
deviation over random heads. Names that end in `_rotary` are the distance-aware measures of rotary positions, averaged
over the distances that the model was made for. Heads of cross-attention have the measures of size and rank alone: their
queries and keys are of different inputs, so that nothing can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear import METRICS, ROTARY_METRICS, BilinearForm, Null, Rotation, null, random_heads
from querykey.bilinear.gram import inner, ratio
from querykey.checkpoint import HeadMap, LayerWeights
from querykey.machine import one_thread, threads
from querykey.models.rotation import rotary_form

ACROSS = ("norm", "effective_rank", "stable_rank")


class Spectrum(NamedTuple):
    """Of heads, all over the norm of M: the eigenvalues of `sym(M)`, ascending, and the singular values, descending."""

    eigenvalues: Float[np.ndarray, "heads both"]
    singular_values: Float[np.ndarray, "heads head_dim"]


class Nulls:
    """The measures of random heads, found once for each shape of heads; the same numbers every time, in any thread."""

    def __init__(self) -> None:
        self._lock, self._threads = Lock(), torch.get_num_threads()
        self._known: dict[Any, dict[str, Null]] = {}
        self._spectra: dict[tuple[int, int], Spectrum] = {}

    def of(self, dim: int, head_dim: int, rotation: Rotation | None) -> dict[str, Null]:
        """The null of every measure, by its name."""
        rotary = None
        if rotation is not None:  # frequencies of equal layers differ in their last digits
            rotary = tuple(float(f"{f:.9g}") for f in rotation.frequencies.tolist()), rotation.window
        key = dim, head_dim, rotary
        with self._lock:
            if key not in self._known:
                generator = torch.Generator().manual_seed(0)
                with threads(self._threads):  # while others wait for it
                    self._known[key] = null(dim, head_dim, generator, draws=32, rotation=rotation)
            return self._known[key]

    def across(self, dims: tuple[int, int], head_dim: int) -> dict[str, Null]:
        """The null of the ranks of cross-attention, whose queries and keys have inputs of these widths."""
        if (dims, head_dim) not in self._known:
            generator = torch.Generator().manual_seed(0)
            W_Q, W_K = (torch.randn(32, dim, head_dim, generator=generator, dtype=torch.float64) for dim in dims)
            form = BilinearForm.across(W_Q, W_K)
            ranks = {name: getattr(form, name) for name in ACROSS if name != "norm"}
            found = {name: Null(float(x.mean()), float(x.std()), "simulated") for name, x in ranks.items()}
            self._known[dims, head_dim] = found
        return self._known[dims, head_dim]

    def spectrum(self, dim: int, head_dim: int) -> Spectrum:
        """The mean spectrum of 16 random heads, as one head."""
        if (dim, head_dim) not in self._spectra:
            found = spectrum(random_heads(dim, head_dim, 16, torch.Generator().manual_seed(0)))
            self._spectra[dim, head_dim] = Spectrum(*(values.mean(0, keepdims=True) for values in found))
        return self._spectra[dim, head_dim]


def measure_layer(weights: LayerWeights, nulls: Nulls, window: int | None) -> tuple[pd.DataFrame, Spectrum]:
    """The rows of one layer and the spectra of its heads; distances below `window` and the layer's own one count."""
    layer, (_, dim, size) = weights.map, weights.W_Q.shape
    form = BilinearForm.from_weights(weights.W_Q, keys_in_pairs(weights), dtype=precision(weights))
    turning = None if layer.rotary is None else rotary_form(form, layer.rotary, layer.distances(window))
    random = nulls.of(dim, size, None if turning is None else turning.rotation)
    measured: dict[str, Tensor] = form.metrics()
    if turning is not None:
        measured |= {f"{name}_rotary": getattr(turning, name) for name in ROTARY_METRICS}
    return _rows(weights, form, measured, random, summed_symmetry(weights)), spectrum(form)


def measure_cross(weights: LayerWeights, nulls: Nulls) -> tuple[pd.DataFrame, Spectrum]:
    """The rows of one layer of cross-attention, with the measures `ACROSS`; its spectra have no eigenvalues."""
    W_K = weights.W_K[list(weights.map.key_head)]
    form = BilinearForm.across(weights.W_Q, W_K, dtype=precision(weights))
    random = nulls.across((weights.W_Q.shape[1], W_K.shape[1]), W_K.shape[-1])
    frame = _rows(weights, form, {name: getattr(form, name) for name in ACROSS}, random, None)
    return frame, spectrum(form)._replace(eigenvalues=np.zeros((len(frame), 0), np.float32))


def _rows(
    weights: LayerWeights,
    form: BilinearForm,
    measured: dict[str, Tensor],
    random: Mapping[str, Null],
    summed: float | None,
) -> pd.DataFrame:
    """A row per head: measures with their nulls, biases and facts; `summed` is None for cross-attention."""
    layer, (heads, dim, _) = weights.map, weights.W_Q.shape
    measured["norm"] = form.norm / (layer.query.factor * layer.key.factor)  # of what is stored
    columns: dict[str, Any] = {"layer": layer.number, "head": range(heads), "kv_head": layer.key_head}
    for name in (*METRICS, *(f"{name}_rotary" for name in ROTARY_METRICS)):
        columns |= with_null(name, measured.get(name), random)
    columns["layer_symmetry"], columns["layer_symmetry_null"] = (
        (np.nan, np.nan) if summed is None else (summed, 1 / dim)
    )
    columns |= _biases(weights, form) | {"attention": "cross" if summed is None else "self"} | _facts(layer, dim)
    return pd.DataFrame(columns)


def with_null(name: str, values: Tensor | None, random: Mapping[str, Null]) -> dict[str, Any]:
    """The columns of a measure; one that these heads do not have is NaN."""
    if values is None:
        return dict.fromkeys((name, f"{name}_null", f"{name}_null_sd"), float("nan"))
    columns: dict[str, Any] = {name: values.numpy(force=True)}
    if name in random:
        columns |= {f"{name}_null": random[name].mean, f"{name}_null_sd": random[name].std}
    return columns


def precision(weights: LayerWeights) -> torch.dtype:
    """float64, but float32 for weights of 16 bits, whose own rounding is ten thousand times as large."""
    return torch.float64 if weights.W_Q.itemsize > 2 else torch.float32


def keys_in_pairs(weights: LayerWeights) -> Float[Tensor, "kv_heads dim qk_dim"]:
    """W_K so that consecutive query heads share a key head, which is how grouped queries nearly always lie."""
    heads, kv_heads = len(weights.W_Q), len(weights.W_K)
    if heads % kv_heads == 0 and weights.map.key_head == tuple(h // (heads // kv_heads) for h in range(heads)):
        return weights.W_K
    return weights.W_K[list(weights.map.key_head)]


@one_thread()
def spectrum(form: BilinearForm) -> Spectrum:
    """Eigenvalues and singular values over the norm; zeros for a head without one."""
    norm = form.norm[:, None]
    return Spectrum(*(ratio(x, norm).float().numpy(force=True) for x in (form.eigenvalues, form.singular_values)))


def summed_symmetry(weights: LayerWeights) -> float:
    """The symmetry of the sum of W_Q W_Kᵀ over a layer's heads, which is what per-layer tables publish.

    Query heads that read one key head are added first: `Σ A_h B_g(h)ᵀ = Σ_g (Σ A_h) B_gᵀ`. No null but 1/dim is known,
    and it says little of single heads: what heads have in common adds up, what they do not averages out.
    """
    W_K = weights.W_K.to(precision(weights))
    W_Q = torch.zeros_like(W_K)
    for head, group in enumerate(weights.map.key_head):
        W_Q[group] += weights.W_Q[head]
    A, B = (W.transpose(0, 1).flatten(1) for W in (W_Q, W_K))
    if A.shape[1] >= A.shape[0]:
        M = A @ B.mT
        return float(ratio(inner(M, M.mT), inner(M, M)))
    crossed, energy, size = A.mT @ B, torch.zeros(()).to(A), W_K.shape[-1]
    for first in range(
        0, A.shape[1], size
    ):  # ⟨AᵀA, BᵀB⟩ is symmetric: blocks on the diagonal, and those right of it twice
        own = slice(first, first + size)
        products = (A[:, own].mT @ A[:, first:]) * (B[:, own].mT @ B[:, first:])
        energy += 2 * products.sum() - products[:, :size].sum()
    return float(ratio(inner(crossed, crossed.mT), energy))


def _biases(weights: LayerWeights, form: BilinearForm) -> dict[str, Any]:
    """Norms of the biases, and how much of the scores they make.

    `(x W_Q + b_Q)·(y W_K + b_K)` is the form, a term `b_Q·(y W_K)` of the key alone, and what all keys have in common
    and the softmax does not see. `bias_share` is the variance over keys of that term on isotropic inputs, of both.
    """
    b_Q, b_K = weights.b_Q, weights.b_K
    if b_Q is None:
        key_only = torch.zeros_like(form.energy)
    else:
        bias = b_Q.to(form.gram.dtype)[..., None]
        key_only = inner(bias, form.key_gram @ bias)
    factors = (weights.map.query.factor, weights.map.key.factor)
    norms = (
        0.0 if b is None else (b.double().norm(dim=-1) / factor).numpy()
        for b, factor in zip((b_Q, b_K), factors, strict=True)
    )
    names = ("query_bias", "key_bias")
    found: dict[str, Any] = dict(zip(names, norms, strict=True))
    if b_K is not None:
        found["key_bias"] = found["key_bias"][list(weights.map.key_head)]
    return found | {"bias_share": ratio(key_only, key_only + form.energy).numpy(force=True)}


def _facts(layer: HeadMap, dim: int) -> dict[str, Any]:
    """What has to be known of a layer to read its measures."""
    return {
        "dim": dim,
        "head_dim": layer.query.size,
        "scaling": (layer.scaling or float("nan")) * layer.query.factor * layer.key.factor,
        "positions": layer.positions,
        "qk_norm": bool(layer.query.norms or layer.key.norms),
        "uses": layer.uses,
        "module": layer.name,
    }
