"""What one matrix costs under a causal mask: the closest scores of a tied head to those that the mask leaves.

    min over keys K (length × width) and row constants c:   Σ (s_ij + c_i − k_i · k_j)²  /  Σ (s_ij − row mean)²

The sums are over the visible pairs j < i, so the self-score is free, and constants in a row change no attention weight.
K is chosen for this text alone. From width length − 1 on, the minimum is 0: a lower triangle can be completed
(docs/why.md, theorem b). Below it is factor analysis with a free diagonal (Harman and Jones 1966), by L-BFGS.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STEPS = 150


def lost(scores: Float[Tensor, "length length"], visible: Bool[Tensor, "length length"], width: int) -> float:
    """The part of the variance within rows that one matrix of this width misses; `visible` is below the diagonal.

    The descent may end above the minimum, so this is an upper bound.
    """
    table = _centred(scores, visible)
    total = float(table.square().sum())
    if width >= len(scores) - 1 or total == 0:
        return 0.0
    values, vectors = torch.linalg.eigh(table + table.mT)
    start = vectors[:, -width:] * (values[-width:] - values[0]).sqrt()  # the completion, cut to this width
    keys = start.contiguous().requires_grad_()
    descent = torch.optim.LBFGS([keys], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        value = _centred(table - keys @ keys.mT, visible).square().sum() / total
        value.backward()
        return value

    descent.step(loss)
    return min(float(loss().detach()), 1.0)


def _centred(scores: Tensor, visible: Tensor) -> Float[Tensor, "length length"]:
    """The visible scores less the mean of their row; 0 elsewhere."""
    means = scores.where(visible, 0).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True).clamp(min=1)
    return (scores - means).where(visible, 0)
