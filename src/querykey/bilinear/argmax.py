"""Where "whom do I attend to most" leads.

The argmax map of a score matrix sends each position to the one it scores highest. Followed for long enough, every path
ends in a cycle, and how long that cycle can be depends on the head:

- tied, `s = k kᵀ`: 1. A step to another position strictly increases the norm of the key, so every path ends in a
  position that attends to itself.
- symmetric scores: 1 or 2. Along a cycle the scores cannot fall, so they are all equal, and both neighbours of a
  position on the cycle are its maxima; the first of them is taken, so they are one.
- any scores: anything up to the number of positions.

Ties go to the first maximum; the statements above hold with ties.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def argmax_cycles(scores: Float[Tensor, "*batch length length"]) -> Int[Tensor, "*batch length"]:
    """Length of the cycle that each position's path ends in; rows of `scores` are queries, columns keys.

    Raises `ValueError` for scores that are not square, empty, or hold NaN.
    """
    length = scores.shape[-1]
    if scores.ndim < 2 or scores.shape[-2] != length or length == 0:
        raise ValueError(
            f"Cycles need as many queries as keys, and at least one; the scores are {tuple(scores.shape)}."
        )
    if scores.isnan().any():
        raise ValueError("The scores hold NaN, so there is no largest one.")
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
