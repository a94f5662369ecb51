"""Replacements: what heads become when their weights are shared, fitted in closed form to moments of their activations.

| kind | the head becomes | closed form |
|---|---|---|
| `trained` | what it is | |
| `copied` | W_K := W_Q, without a fit | |
| `tied` | W_Q = W_K | `best_tied`; under rotary positions `best_tied_rotary` |
| `signed` | W_Q = W_K with a sign per dimension (per pair that rotates) | `best_signed`; `best_signed_rotary` |
| `core` | W_Q = W_K C with a head_dim × head_dim matrix C | `best_core`; `core_on_keys` |
| `key_value` | one projection for keys and values | `best_key_value` |
| `uniform` | the same weight on every position | |
| `selfmask` | no position attends to itself | |
| `cosine` | scores are proportional to the cosine of query and key | |

A fitted replacement is a set of affine maps of a head's own queries, keys and values, before the rotation by positions,
or of the layer's input. So it acts on one head or on a whole layer, and whoever fits other maps (a latent that all key
heads of a layer share) makes a `Replacement` of them. Without rotation, biases keep what keys alone add to the scores;
under rotation `core` has the bias of its least-squares fit, and `tied` and `signed` mix the biases like the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.bilinear import (
    BilinearForm,
    SharedHead,
    best_core,
    best_key_value,
    best_signed,
    best_signed_rotary,
    best_tied,
    best_tied_rotary,
    core_on_keys,
    shared_bias,
)
from querykey.checkpoint import Rotary
from querykey.machine import at_once, one_thread
from querykey.models.intervention import HeadInput, Intervention, Interventions
from querykey.models.moments import Moments
from querykey.models.rotation import paired_order, rotary_form
from querykey.models.trace import TracedModel

Kind = Literal["trained", "copied", "tied", "signed", "core", "key_value", "uniform", "selfmask", "cosine"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WITHOUT_POSITIONS: tuple[Kind, ...] = ("trained", "selfmask", "cosine")  # need not undo the rotation by positions

Source = Literal["x", "query", "key", "value"]
Role = Literal["query", "key", "value"]


class Affine(NamedTuple):
    """Σ source @ matrix + bias for each head of a layer."""

    matrices: Mapping[Source, Float[Tensor, "heads source size"]]
    bias: Float[Tensor, "heads size"]

    def of(self, given: HeadInput, head: int | None) -> Tensor:
        """The map of one head, or of all heads of the layer."""
        at = slice(None) if head is None else head
        bias = self.bias[:, None] if head is None else self.bias[head]
        found = bias.to(given.x).expand(*given.query.shape[:-1], -1)
        for source, matrix in self.matrices.items():
            found = found + getattr(given, source) @ matrix[at].to(given.x)
        return found


@dataclass(frozen=True, eq=False)
class Replacement:
    """What replaces all heads of a layer, or any one of them: maps for the roles that change, or another scoring."""

    maps: Mapping[Role, Affine] = field(default_factory=dict)
    self_mask: bool = False
    cosine: Float[Tensor, " heads"] | None = None

    def intervention(self, head: int | None = None) -> Intervention:
        """The intervention in this head, or in the whole layer."""

        def function(affine: Affine) -> Callable[[HeadInput], Tensor]:
            return lambda given: affine.of(given, head)

        cosine = self.cosine if self.cosine is None or head is None else float(self.cosine[head])
        functions = {role: function(affine) for role, affine in self.maps.items()}
        return Intervention(**functions, self_mask=self.self_mask, cosine=cosine)


class Replacements:
    """The replacements of a model's heads, each fitted when it is first asked for.

    - `moments`: by layer in the order of running; the same object where a layer runs several times.
    - `window`: under rotary positions `tied` is fitted over the distances below it; None for all.

    `kinds` are those that every layer can have.
    """

    def __init__(self, moments: Mapping[int, Moments], window: int | None = None) -> None:
        self.moments, self.window = moments, window
        free = all(one.layer.positions != "other" for one in moments.values())
        self.kinds = KINDS if free else WITHOUT_POSITIONS
        self._fits: dict[tuple[Kind, Moments], Replacement] = {}

    @classmethod
    def of(
        cls, model: TracedModel, ids: Int[Tensor, "batch length *features"], window: int | None = None
    ) -> Replacements:
        """The replacements of a model, fitted to what it computes on one batch."""
        moments = [Moments(layer) for layer in model.layers]
        running = iter(moments)
        model.trace(ids, see=lambda layer: next(running).add(layer))
        return cls(dict(enumerate(moments)), window)

    def interventions(self, kind: Kind, places: Iterable[tuple[int, int | None]]) -> Interventions:
        """The interventions that make heads (layer, head), or with head None layers, into those of this kind.

        Raises ValueError for a kind that this model cannot have.
        """
        if kind not in self.kinds:
            raise ValueError(f"no replacement {kind!r} for this model; it has {', '.join(self.kinds)}")
        if kind == "trained":
            return {}
        chosen = [(layer, head, (kind, self.moments[layer])) for layer, head in places]
        missing = [key for key in dict.fromkeys(key for *_, key in chosen) if key not in self._fits]
        fits = at_once(lambda key: fit(*key, self.window), missing)
        self._fits.update(zip(missing, fits, strict=True))
        return {(layer, head): self._fits[key].intervention(head) for layer, head, key in chosen}


@one_thread()
def fit(kind: Kind, moments: Moments, window: int | None = None) -> Replacement:
    """The replacement of a layer by the closest heads of a kind; `window` as in `Replacements`."""
    zeros = torch.zeros_like(moments.mean[:, : moments.head_dim])
    match kind:
        case "trained":
            return Replacement()
        case "selfmask":
            return Replacement(self_mask=True)
        case "cosine":
            return Replacement(cosine=moments.temperature)
        case "copied":
            return Replacement(
                {"key": Affine({"query": torch.eye(moments.head_dim).expand(len(zeros), -1, -1)}, zeros)}
            )
        case "uniform":
            return Replacement({"query": Affine({}, zeros)})
        case "key_value":
            return _key_value(moments)
        case "core" if moments.layer.rotary is not None:
            return _core_on_keys(moments)
    form = moments.form()
    if moments.layer.rotary is not None:
        return _shared(_rotary(kind, form, moments.layer.rotary, window), zeros)
    closed: dict[Kind, Callable[..., SharedHead]] = {"tied": best_tied, "signed": best_signed, "core": best_core}
    shared = closed[kind](form, key_only=True)
    return _shared(shared, shared_bias(shared, form))


def _shared(shared: SharedHead, bias: Float[Tensor, "heads qk_dim"]) -> Replacement:
    """Keys `k̂ = q F_q + k F_k + bias`, queries `k̂ C`."""
    from_query, from_key, core = shared
    key = Affine({"query": from_query, "key": from_key}, bias)
    query = Affine({"query": from_query @ core, "key": from_key @ core}, (bias[:, None] @ core)[:, 0])
    return Replacement({"query": query, "key": key})


def _rotary(kind: Kind, form: BilinearForm, rotary: Rotary, window: int | None) -> SharedHead:
    """Under rotation: fitted over the distances of the window, `signed` always over all."""
    turning = rotary_form(form, rotary, None if kind == "signed" else window)
    shared = (best_signed_rotary if kind == "signed" else best_tied_rotary)(turning.form, turning.rotation)
    back = paired_order(rotary, form.head_dim).argsort()
    return SharedHead(*(matrix[..., back, :][..., back] for matrix in shared))


def _core_on_keys(moments: Moments) -> Replacement:
    """`q ≈ k C + b` by least squares: the best core given W_K, at every distance, with a bias of its own."""
    core, n = core_on_keys(moments.form()).core, moments.head_dim
    bias = moments.mean[:, :n] - (moments.mean[:, None, n : 2 * n] @ core)[:, 0]
    return Replacement({"query": Affine({"key": core}, bias)})


def _key_value(moments: Moments) -> Replacement:
    """Keys and values from `u = (k − k̄) F_k + (v − v̄) F_v`: the key `u Sᵀ + k̄` and the value `u T + v̄`.

    A key head and all query heads that read it share one u.
    """
    given, n = moments.key_value(), moments.head_dim
    shared = best_key_value(given.covariance, given.query_moment, given.output_gram)
    mean_key, mean_value = given.mean[:, None, :n], given.mean[:, None, n:]
    groups = list(moments.layer.key_head)

    def reads(out: Float[Tensor, "kv_heads size role"], mean: Float[Tensor, "kv_heads 1 role"]) -> Affine:
        matrices: dict[Source, Tensor] = {"key": shared.from_key @ out, "value": shared.from_value @ out}
        bias = mean - mean_key @ matrices["key"] - mean_value @ matrices["value"]
        return Affine({source: matrix[groups] for source, matrix in matrices.items()}, bias[groups, 0])

    return Replacement({"key": reads(shared.query_map.mT, mean_key), "value": reads(shared.output_map, mean_value)})
