"""What a model would lose if heads shared weights: each replaced by the closest shared one, in closed form, and run.

Nothing is trained: the replacement is fitted to the queries, keys and values of one half of a text, and what comes out
of the model is compared on the other half. So a forecast is a lower bound of what conversion with training can reach.

| replacement | the head becomes | closed form |
|---|---|---|
| `tied` | W_Q = W_K | `best_tied`; under rotary positions `best_tied_rotary` |
| `signed` | W_Q = W_K with a sign per dimension | `best_signed`; `best_signed_rotary` |
| `core` | W_Q = W_K C with a head_dim × head_dim matrix C | `best_core`; `core_on_keys` |
| `key_value` | one projection for keys and values | `best_key_value` |
| `copied` | W_K := W_Q, no fit | for comparison |
| `uniform` | the same weight on every position | for comparison |

Biases are refitted, where positions do not rotate, to keep what keys alone add to the scores. Under rotary positions
`key_value` is not free at run time: keys have to be made from the shared tensor before they are rotated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from querykey.bilinear import (
    SharedHead,
    SharedKeyValue,
    best_core,
    best_key_value,
    best_signed,
    best_signed_rotary,
    best_tied,
    best_tied_rotary,
    copied_queries,
    core_on_keys,
    shared_bias,
)
from querykey.machine import one_thread
from querykey.models.huggingface import HuggingFaceModel
from querykey.models.intervention import HeadInput, Intervention, Interventions
from querykey.models.moments import KeyValue, Moments
from querykey.models.rotation import paired_order, rotary_form

Replacement = Literal["tied", "signed", "core", "key_value", "copied", "uniform"]
REPLACEMENTS: tuple[Replacement, ...] = ("tied", "signed", "core", "key_value")
COMPARISONS: tuple[Replacement, ...] = ("copied", "uniform")
BATCH = 8  # pieces that run at once


class Effect(NamedTuple):
    """Of a replacement on the output, over all pieces; `perplexity` is NaN for what is no causal language model.

    `cosine` is that between the hidden states after the last layer with and without it, averaged over tokens, and
    `pooled_cosine` between their means over a piece, which is what sentence embeddings are made of.
    """

    cosine: float
    pooled_cosine: float
    perplexity: float


class Yardstick:
    """The output of a model as it is, on some pieces of text."""

    def __init__(self, model: HuggingFaceModel, ids: Int[Tensor, "pieces length"]) -> None:
        self.model, self.ids = model, ids
        self._hidden = [model.trace(batch).hidden for batch in ids.split(BATCH)]

    def effect(self, changes: Interventions) -> Effect:
        """What changes if these heads, (layer in the order of running, head), do."""
        cosines, pooled, losses = [], [], []
        for batch, before in zip(self.ids.split(BATCH), self._hidden, strict=True):
            run = self.model.trace(batch, changes)
            cosines.append(F.cosine_similarity(run.hidden, before, dim=-1).flatten())
            pooled.append(F.cosine_similarity(run.hidden.mean(1), before.mean(1), dim=-1))
            if self.model.causal and run.logits is not None:
                losses.append(
                    F.cross_entropy(run.logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
                )
        perplexity = math.exp(torch.cat(losses).double().mean()) if losses else math.nan
        return Effect(float(torch.cat(cosines).mean()), float(torch.cat(pooled).mean()), perplexity)


def forecast(
    yardstick: Yardstick,
    fitted: Mapping[int, Moments],
    *,
    per: Literal["all", "layer", "head"] = "layer",
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> pd.DataFrame:
    """A row for every replacement of all heads at once, then of every layer or head.

    `fitted` has moments by the number of the layer in the checkpoint; layers that are used several times are replaced
    everywhere, and those that `fitted` leaves out nowhere. Columns ``scope`` ("none", "all", "layer", "head"),
    ``layer``, ``head`` (−1 where it is not one), ``replacement`` and those of `Effect`; the first row is the model as
    it is, and the only one where nothing has been fitted.
    """
    model = yardstick.model
    names = {layer.name: number for number, layer in enumerate(model.checkpoint.layers)}
    ran = [names[layer.name] for layer in model.layers]
    kinds = (*REPLACEMENTS, *COMPARISONS)
    output = {number: _output(model, number) for number in fitted}
    changes = {kind: {n: replaced(kind, moments, output[n]) for n, moments in fitted.items()} for kind in kinds}
    todo = list(_todo(fitted, per)) if fitted else []
    rows = [{"scope": "none", "layer": -1, "head": -1, "replacement": "", **yardstick.effect({})._asdict()}]
    for done, (scope, layer, head, kind) in enumerate(todo, start=1):
        chosen: Interventions = {
            (place, h): change
            for place, number in enumerate(ran)
            if number in fitted and layer in (-1, number)
            for h, change in changes[kind][number].items()
            if head in (-1, h)
        }
        effect = yardstick.effect(chosen)
        rows.append({"scope": scope, "layer": layer, "head": head, "replacement": kind, **effect._asdict()})
        watch(done, len(todo))
    return pd.DataFrame(rows)


@one_thread()
def replaced(kind: Replacement, moments: Moments, output_gram: Float[Tensor, "heads v v"]) -> dict[int, Intervention]:
    """The change of every head of a layer to the closest one of that kind."""
    if kind == "uniform":
        return {
            head: Intervention(query=lambda given: torch.zeros_like(given.query)) for head in range(len(moments.mean))
        }
    if kind == "key_value":
        return _key_value(moments, output_gram)
    rotates = moments.layer.rotary is not None
    if kind == "core" and rotates:
        return _core_on_keys(moments)
    shared, bias = _rotary(kind, moments) if rotates else _plain(kind, moments)
    return {head: _change(SharedHead(*(m[head] for m in shared)), bias[head]) for head in range(len(bias))}


def _todo(fitted: Mapping[int, Moments], per: str) -> Iterator[tuple[str, int, int, Replacement]]:
    for kind in (*REPLACEMENTS, *COMPARISONS):
        yield "all", -1, -1, kind
    for number, moments in fitted.items():
        if per == "layer":
            yield from (("layer", number, -1, kind) for kind in REPLACEMENTS)
        elif per == "head":
            yield from (("head", number, head, kind) for head in range(len(moments.mean)) for kind in REPLACEMENTS)


def _plain(kind: Replacement, moments: Moments) -> tuple[SharedHead, Float[Tensor, "heads qk_dim"]]:
    """Without rotation: with the bias that keeps the key-only term."""
    form = moments.form()
    if kind == "copied":
        return copied_queries(form), torch.zeros_like(moments.mean[:, : moments.head_dim])
    fit = {"tied": best_tied, "signed": best_signed, "core": best_core}[kind]
    shared = fit(form, key_only=True)
    return shared, shared_bias(shared, form)


def _rotary(kind: Replacement, moments: Moments) -> tuple[SharedHead, Float[Tensor, "heads qk_dim"]]:
    """Under rotation: fitted over distances, with the biases mixed like the weights."""
    assert moments.layer.rotary is not None
    form, order = moments.form(), paired_order(moments.layer.rotary, moments.head_dim)
    if kind == "copied":
        return copied_queries(form), torch.zeros_like(moments.mean[:, : moments.head_dim])
    turning = rotary_form(form, moments.layer.rotary, None)
    fit = {"tied": best_tied_rotary, "signed": best_signed_rotary}[kind]
    back = order.argsort()
    shared = fit(turning.form, turning.rotation)
    unpaired = SharedHead(*(m[..., back, :][..., back] for m in shared))
    return unpaired, torch.zeros_like(moments.mean[:, : moments.head_dim])


def _change(shared: SharedHead, bias: Float[Tensor, " qk_dim"]) -> Intervention:
    """Keys `k̂ = q F_q + k F_k + bias`, queries `k̂ C`."""

    def key(given: HeadInput) -> Tensor:
        q, k = given.query, given.key
        return q @ shared.from_query.to(q) + k @ shared.from_key.to(k) + bias.to(k)

    return Intervention(query=lambda given: key(given) @ shared.core.to(given.query), key=key)


def _core_on_keys(moments: Moments) -> dict[int, Intervention]:
    """`q ≈ k C + b` by least squares: the best core given W_K, at every distance, with a bias of its own."""
    cores = core_on_keys(moments.form()).core
    n = moments.head_dim
    biases = moments.mean[:, :n] - (moments.mean[:, None, n : 2 * n] @ cores)[:, 0]
    return {head: _from_keys(cores[head], biases[head]) for head in range(len(cores))}


def _from_keys(core: Tensor, bias: Tensor) -> Intervention:
    return Intervention(query=lambda given: given.key @ core.to(given.key) + bias.to(given.key))


def _key_value(moments: Moments, output_gram: Float[Tensor, "heads v v"]) -> dict[int, Intervention]:
    """Keys and values from one tensor u; a key head and all query heads that read it share one u."""
    found: dict[int, Intervention] = {}
    key_head = moments.layer.key_head
    for group in range(max(key_head) + 1):
        mine = [head for head, own in enumerate(key_head) if own == group]
        given = moments.key_value(group)
        shared = best_key_value(given.covariance, given.query_moment, output_gram[mine].double().sum(0))
        found |= dict.fromkeys(mine, _from_one(shared, given))
    return found


def _from_one(shared: SharedKeyValue, moments: KeyValue) -> Intervention:
    """`u = (k − k̄) F_k + (v − v̄) F_v`, read as the key `u Sᵀ + k̄` and the value `u T + v̄`."""

    def u(given: HeadInput) -> Tensor:
        k, v = given.key, given.value
        return (k - moments.mean_key.to(k)) @ shared.from_key.to(k) + (
            v - moments.mean_value.to(v)
        ) @ shared.from_value.to(v)

    def value(given: HeadInput) -> Tensor:
        return u(given) @ shared.output_map.to(given.value) + moments.mean_value.to(given.value)

    def key(given: HeadInput) -> Tensor:
        return u(given) @ shared.query_map.mT.to(given.key) + moments.mean_key.to(given.key)

    return Intervention(key=key, value=value)


def _output(model: HuggingFaceModel, number: int) -> Float[Tensor, "heads v v"]:
    """`W_O W_Oᵀ` of every head; the identity where the output weights cannot be followed."""
    weights = model.checkpoint.read(number, values=True)
    layer = weights.map
    size = layer.value.size if layer.value else layer.query.size
    if weights.W_O is None:
        return torch.eye(size).expand(layer.query.heads, size, size)
    return weights.W_O @ weights.W_O.mT
