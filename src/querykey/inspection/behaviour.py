"""How heads behave on a text: where their attention goes, and the cycles of i → argmax_j of their weights.

The null of each measure is uniform attention over the positions that are allowed, and for cycles a random map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from querykey.bilinear import argmax_cycles
from querykey.models.trace import LayerTrace

NEAR = {"self_mass": 0, "previous_mass": -1, "next_mass": 1}  # key position less query position
CYCLES = ("cycle_1", "cycle_2", "cycle_longer")
BEHAVIOUR = ("entropy", "first_mass", *NEAR, *CYCLES)


def behaviour(trace: LayerTrace, two_way: bool) -> dict[str, Float[Tensor, " heads"]]:
    """Of every head, averaged over the positions of the batch:

    - `entropy`: of the attention weights, over that of uniform ones: 0 on one position, 1 uniform;
    - `first_mass`, `self_mass`, `previous_mass`, `next_mass`: weight on the first position, the own one and neighbours,
      over the positions that have one (the first position itself is left out of `first_mass`);
    - `cycle_1`, `cycle_2`, `cycle_longer`, of bidirectional models: share of positions from which the map to the
      position with the highest weight leads into a cycle of that length. A tied head has 1, 0, 0, and symmetric scores
      have no cycle longer than 2.
    """
    found = _masses(trace.weights, _allowed(trace))
    if two_way:
        cycles = argmax_cycles(trace.weights)
        shares = [cycles == 1, cycles == 2, cycles > 2]
        found |= {name: share.double().mean((0, 2)) for name, share in zip(CYCLES, shares, strict=True)}
    return found


def blind(trace: LayerTrace, two_way: bool, generator: torch.Generator) -> dict[str, float]:
    """The same of uniform attention, and of random maps."""
    allowed = _allowed(trace)[:1, :1]
    equal = allowed / allowed.sum(-1, keepdim=True)
    found = {name: float(value) for name, value in _masses(equal, allowed).items()}
    if two_way:
        length = allowed.shape[-1]
        cycles = argmax_cycles(torch.rand(200, length, length, generator=generator))
        shares = [cycles == 1, cycles == 2, cycles > 2]
        found |= {name: float(share.double().mean()) for name, share in zip(CYCLES, shares, strict=True)}
    return found


def mean(parts: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The mean over batches, (number of pieces, their means) each."""
    total = sum(count for count, _ in parts)
    return {name: sum((count * part[name] for count, part in parts), torch.zeros(())) / total for name in parts[0][1]}


def _masses(
    weights: Float[Tensor, "batch heads length length"], allowed: Bool[Tensor, "batch heads length length"]
) -> dict[str, Float[Tensor, " heads"]]:
    seen = allowed.sum(-1)
    some = seen > 1  # with one position allowed, the weight on it is 1
    entropy = torch.special.entr(weights.double()).sum(-1) / seen.clamp(min=2).log()
    found = {"entropy": _average(entropy, some), "first_mass": weights[..., 1:, 0].double().mean((0, 2))}
    for name, step in NEAR.items():
        reached = allowed.diagonal(step, -2, -1)
        if reached.any():
            found[name] = _average(weights.diagonal(step, -2, -1).double(), reached)
    return found


def _average(values: Float[Tensor, "batch heads n"], chosen: Bool[Tensor, "#batch #heads n"]) -> Tensor:
    chosen = chosen.expand_as(values)
    return (values * chosen).sum((0, 2)) / chosen.sum((0, 2))


def _allowed(trace: LayerTrace) -> Bool[Tensor, "batch heads length length"]:
    everywhere = torch.ones((), dtype=torch.bool, device=trace.weights.device)
    return (everywhere if trace.allowed is None else trace.allowed).expand_as(trace.weights)
