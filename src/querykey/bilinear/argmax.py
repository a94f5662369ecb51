"""Cycles of the argmax map of attention scores.

The argmax map sends each position to the position that it scores highest. Every path of the map ends in a cycle, and
the possible lengths of that cycle depend on the head:

- tied, `s = k kᵀ`: 1. A step to another position strictly increases the norm of the key, so every path ends in a
  self-loop.
- symmetric scores: 1 or 2. Along a cycle the scores cannot decrease, so they are all equal. Both neighbours of a
  position on the cycle are then its maxima, and the first of them is taken, so they are the same position.
- any scores: 1 up to the number of positions.

Ties go to the first maximum; the statements above hold with ties.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def argmax_cycles(scores: Float[Tensor, "*batch length length"]) -> Int[Tensor, "*batch length"]:
    """Length of the cycle that the path of each position ends in; rows of `scores` are queries, columns are keys.

    Raises ValueError for scores that are not square, are empty, or hold NaN.
    """
    length = scores.shape[-1]
    if scores.ndim < 2 or scores.shape[-2] != length or length == 0:
        raise ValueError(f"the scores are {tuple(scores.shape)}; cycles need as many queries as keys, and at least one")
    if scores.isnan().any():
        raise ValueError("the scores hold NaN; expected numbers that can be compared")
    step = scores.argmax(-1)
    on_cycle = step
    for _ in range((length - 1).bit_length()):  # doubles the number of steps taken, to at least `length`
        on_cycle = on_cycle.gather(-1, on_cycle)
    cycle = torch.zeros_like(step)
    reached = on_cycle
    for count in range(1, length + 1):
        reached = step.gather(-1, reached)
        cycle = torch.where((cycle == 0) & (reached == on_cycle), count, cycle)
        if cycle.all():
            break
    return cycle
