"""Convergence read off curves whose answer is plain."""

import pytest

from querykey.stats.convergence import catching_up, converged_at, still_improving


def curve(*scores):
    return {"step": [10 * (n + 1) for n in range(len(scores))], "validation": list(scores)}


@pytest.mark.parametrize(
    ("scores", "higher", "step", "improving"),
    [
        ((0.1, 0.5, 0.9, 0.995, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), True, 40, False),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), True, None, True),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), False, None, False),  # getting worse is no improving
        ((5.0, 4.0, 3.0, 3.0, 3.0, 3.0), False, 30, False),
        ((0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.92, 0.92, 0.92, 0.92), True, 70, True),  # it rose since half of the training
        ((1.0, 0.2, 1.0, 1.0, 1.0, 1.0), True, 30, False),  # a dip counts
        ((1.0, 1.0), True, 10, False),
        ((1.0,), True, None, False),
        ((), True, None, False),
    ],
)
def test_convergence(scores, higher, step, improving):
    assert converged_at(curve(*scores), higher, 0.01) == step
    assert still_improving(curve(*scores), higher, 0.01) == improving


@pytest.mark.parametrize("higher", [True, False])
def test_the_one_behind_catches_up_where_the_lead_shrinks(higher):
    sign = 1 if higher else -1
    ahead, behind = (
        curve(*(sign * x for x in (0.1, 0.5, 0.8, 0.9, 0.9))),
        curve(*(sign * x for x in (0, 0.1, 0.2, 0.3, 0.5))),
    )
    assert catching_up(ahead, behind, higher, 0.1)
    assert not catching_up(ahead, behind, higher, 0.25)
    assert not catching_up(behind, ahead, higher, 0.1)
    steady = curve(*(sign * x for x in (0, 0.1, 0.3, 0.4, 0.4)))
    assert not catching_up(ahead, steady, higher, 0.1)
    slow = curve(*(sign * x for x in (0, 0.0, 0.0, 0.0, 0.06)))  # it gains 0.06 of 0.84: five such fifths are too few
    assert catching_up(ahead, slow, higher, 0.05) is False
    assert catching_up(curve(*(sign * x for x in (0.1, 0.2, 0.3, 0.3, 0.3))), slow, higher, 0.05)
