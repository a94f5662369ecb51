"""Changes of the scores between similarity and softmax: soft cap, ALiBi and attention sinks.

scores = cap · tanh(similarity / cap)                 soft cap (Gemma 2, 2408.00118)
scores = scores − slope · |i − j|                     ALiBi (2108.12409), positions by their place in the sequence
weights = softmax([scores, sink]) without the last    sinks (gpt-oss, 2508.10925): what a sink takes, no value gets
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Modifiers(NamedTuple):
    """What changes the scores of a call; None where nothing does. Slopes and sinks are one number per query head."""

    softcap: float | None = None
    slopes: Float[Tensor, " heads"] | None = None
    sinks: Float[Tensor, " heads"] | None = None

    @property
    def needs_scores(self) -> bool:
        """Whether the fused kernels, which know additive masks only, cannot compute this."""
        return self.softcap is not None or self.sinks is not None


NONE = Modifiers()


def check(softcap: float | None, sinks: Tensor | None, heads: int) -> None:
    """Raise ValueError unless the soft cap is positive, and there is a sink for each head."""
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, not {softcap}")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks must be one score for each of the {heads} heads, not of shape {tuple(sinks.shape)}")


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores between −cap and cap."""
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def alibi_slopes(heads: int, device: torch.device | None = None) -> Float[Tensor, " heads"]:
    """2^(−8/n), 2^(−16/n), … for n heads, a power of two; other numbers take every second slope of the next power."""
    power = 2 ** math.floor(math.log2(heads))
    first = torch.arange(1, power + 1, device=device) * (-8 / power)
    second = (2 * torch.arange(heads - power, device=device) + 1) * (-4 / power)
    return torch.cat([first, second]).exp2()


def alibi(
    slopes: Float[Tensor, " heads"], queries: Int[Tensor, " queries"], keys: Int[Tensor, " keys"]
) -> Float[Tensor, "heads queries keys"]:
    """−slope · |i − j| for queries and keys at these places."""
    return slopes[:, None, None] * -(queries[:, None] - keys).abs().to(slopes.dtype)


def softmax_with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Weights over the last axis of (batch, heads, query, key) scores, without those of the sinks."""
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
