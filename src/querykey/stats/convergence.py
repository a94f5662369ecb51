"""Whether training was long enough, read off the validation curves of the cells.

Where a curve still rises, two designs that seem alike may part later. Where the design behind catches up, the gap may
close.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Shares of the evaluations. The learning rate falls to 0 at the end of training and flattens every curve, so that a
# curve counts as still improving if it rose since half of the training.
IMPROVING_SHARE = 0.5
CATCHING_UP_SHARE = 0.2


def converged_at(curve: Mapping[str, Sequence[float]], higher_is_better: bool, tolerance: float) -> int | None:
    """The first step from which on the validation score stays within `tolerance` of its last value.

    None for a curve that ends before its second point, or that gets there only with its last one.
    """
    steps, scores = curve.get("step", ()), _upwards(curve, higher_is_better)
    if len(scores) < 2:
        return None
    near = np.abs(scores - scores[-1]) <= tolerance
    first = len(near) - int(np.argmin(near[::-1])) if not near.all() else 0
    return int(steps[first]) if first < len(scores) - 1 else None


def still_improving(curve: Mapping[str, Sequence[float]], higher_is_better: bool, tolerance: float) -> bool:
    """Whether the validation score rose by more than `tolerance` over the second half of the evaluations."""
    scores = _upwards(curve, higher_is_better)
    last = max(1, round(IMPROVING_SHARE * len(scores)))
    return len(scores) > last and bool(scores[-1] - scores[-1 - last] > tolerance)


def catching_up(
    ahead: Mapping[str, Sequence[float]],
    behind: Mapping[str, Sequence[float]],
    higher_is_better: bool,
    tolerance: float,
) -> bool:
    """Whether one curve could overtake another that is ahead of it, if training went on as long again.

    The lead shrank by more than `tolerance` over the last fifth, and at that pace it would be gone, up to `tolerance`.
    """
    lead = _upwards(ahead, higher_is_better) - _upwards(behind, higher_is_better)
    last = max(1, round(CATCHING_UP_SHARE * len(lead)))
    if len(lead) <= last:
        return False
    shrank = lead[-1 - last] - lead[-1]
    return bool(shrank > tolerance and lead[-1] - shrank * len(lead) / last <= tolerance)


def _upwards(curve: Mapping[str, Sequence[float]], higher_is_better: bool) -> np.ndarray:
    scores = np.asarray(curve.get("validation", ()), dtype=float)
    return scores if higher_is_better else -scores
