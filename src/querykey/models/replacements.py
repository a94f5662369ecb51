"""The switch: what a head becomes when its queries and keys are made the same, in seven settings.

| setting | queries and keys |
|---|---|
| `trained` | q = x W_Q, k = x W_K |
| `copied` | k = x W_Q: W_K := W_Q, with no fit at all |
| `tied` | q = k = x W, the closest single matrix |
| `signed` | k = x W, q = k C with C diagonal, each entry +1 or −1: symmetric scores, the closest ones |
| `core` | k = x W, q = k C with any small matrix C |
| `selfmask` | as trained, but no position may attend to itself |
| `cosine` | as trained, but only the angle between q and k counts |

Closest means the least squared error of the scores on a sample of what the head gets (`bilinear.closed_form`, fitted to
its own queries and keys, with the term that depends on the key alone). Under rotary positions `tied` is fitted for all
distances, `core` has W = W_K, for which it is exact which core is best, and `signed` is not offered: a core of signs
does not commute with the rotation, so its scores would not be symmetric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.bilinear import (
    BilinearForm,
    SharedHead,
    best_core,
    best_signed,
    best_tied,
    best_tied_rotary,
    core_on_keys,
    shared_bias,
)
from querykey.checkpoint import HeadMap
from querykey.machine import one_thread
from querykey.models.intervention import HeadInput, Intervention, Interventions
from querykey.models.rotation import rotary_form, rotated
from querykey.models.trace import LayerTrace

Setting = Literal["trained", "copied", "tied", "signed", "core", "selfmask", "cosine"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)
Scope = Literal["head", "layer", "all"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

WINDOW = 64  # distances below it count in the fit under rotary positions


class Fit(NamedTuple):
    """What a layer becomes in one setting that has to be fitted: `shared` over its heads, and what is added to keys.

    `order` puts the channels of a head in the order that `shared` has them in.
    """

    shared: SharedHead
    bias: Float[Tensor, "heads head_dim"]
    order: Int[Tensor, " head_dim"]

    def intervention(self, head: int) -> Intervention:
        """The intervention in one head."""
        from_query, from_key, core = (m[head].float() for m in self.shared)
        bias, back = self.bias[head].float(), self.order.argsort()

        def mixed(given: HeadInput) -> Tensor:
            query, key = given.query[..., self.order], given.key[..., self.order]
            return query @ from_query.to(query) + key @ from_key.to(key) + bias.to(key)

        return Intervention(
            query=lambda given: (mixed(given) @ core.to(given.query))[..., back],
            key=lambda given: mixed(given)[..., back],
        )


@dataclass(frozen=True, eq=False)
class Switch:
    """The settings of a model's heads, fitted to a sample of what they get; `settings` are those that it has."""

    fits: Mapping[tuple[Setting, int], Fit]
    temperatures: Sequence[Float[Tensor, " heads"]]
    settings: tuple[Setting, ...]

    def interventions(self, setting: Setting, heads: Sequence[tuple[int, int]]) -> Interventions:
        """What the setting makes of these heads, as (layer, head).

        Raises ValueError for a setting that there is not, or not for this model.
        """
        if setting not in self.settings:
            raise ValueError(f"there is no setting {setting!r} for this model; it has {', '.join(self.settings)}")
        if setting == "trained":
            return {}
        return {(layer, head): self._intervention(setting, layer, head) for layer, head in heads}

    def _intervention(self, setting: Setting, layer: int, head: int) -> Intervention:
        match setting:
            case "copied":
                return Intervention(key=lambda given: given.query)
            case "selfmask":
                return Intervention(self_mask=True)
            case "cosine":
                return Intervention(cosine=float(self.temperatures[layer][head]))
        return self.fits[setting, layer].intervention(head)


@one_thread()
def fitted(layers: Sequence[HeadMap], sample: Sequence[LayerTrace]) -> Switch:
    """The switch of a model with these layers; `sample` is a run of it on what the closed forms are fitted to."""
    fits: dict[tuple[Setting, int], Fit] = {}
    temperatures = []
    settings = list(SETTINGS)
    for number, (layer, run) in enumerate(zip(layers, sample, strict=True)):
        if layer.positions == "other":  # queries and keys cannot be told from their positions
            settings = [setting for setting in settings if setting in ("trained", "selfmask", "cosine")]
        else:
            fits |= {(setting, number): fit for setting, fit in _fits(layer, run).items()}
        temperatures.append(_temperature(layer, run))
    for setting in ("tied", "signed", "core"):
        if any((setting, number) not in fits for number in range(len(layers))) and setting in settings:
            settings.remove(setting)
    return Switch(fits, temperatures, tuple(settings))


def _fits(layer: HeadMap, run: LayerTrace) -> dict[Setting, Fit]:
    """The fitted settings of one layer."""
    query, key = (_samples(x, layer) for x in (run.query, run.key))
    form = BilinearForm.from_activations(query, key)
    order = torch.arange(form.head_dim)
    if layer.rotary is None:
        heads: dict[Setting, SharedHead] = {
            "tied": best_tied(form, key_only=True),
            "signed": best_signed(form, key_only=True),
            "core": best_core(form, key_only=True),
        }
        return {setting: Fit(head, shared_bias(head, form), order) for setting, head in heads.items()}
    turning = rotary_form(form, layer.rotary, WINDOW)
    first, second = layer.rotary.pairs.T
    still = torch.ones(form.head_dim, dtype=torch.bool)
    still[layer.rotary.pairs.flatten()] = False
    paired = torch.cat([first, second, still.nonzero().flatten()])
    nothing = torch.zeros(len(query), form.head_dim)
    return {
        "tied": Fit(best_tied_rotary(turning.form, turning.rotation), nothing, paired),
        "core": Fit(core_on_keys(form), nothing, order),
    }


def _samples(x: Float[Tensor, "batch heads length size"], layer: HeadMap) -> Float[Tensor, "heads tokens size"]:
    """All queries or keys of each head, as they are before the rotation."""
    return rotated(x, layer.rotary, -1).transpose(0, 1).flatten(1, 2).double()


def _temperature(layer: HeadMap, run: LayerTrace) -> Float[Tensor, " heads"]:
    """For each head the number that gives the cosine as much weight as the dot product has on average."""
    query, key = (x.norm(dim=-1).mean((0, 2)) for x in (run.query, run.key))
    scaling: float = run.query.shape[-1] ** -0.5 if layer.scaling is None else layer.scaling
    temperature: Tensor = query * key * scaling
    return temperature
