"""Verdicts on a family of comparisons.

A family holds every comparison that a plan declares before it runs: each (task, design) against one baseline. Three
kinds of statement can be made of each:

- *better*: the mean paired difference is not 0;
- *within the margin*: the mean paired difference lies within ± margin (two one-sided tests);
- *beyond the margin*: better, and the mean paired difference lies outside ± margin.

A statement needs p ≤ alpha of the t test after Holm over the whole family, and the consent of the sign-flip test: its
own p after Holm ≤ alpha. Where n pairs are too few for that, up to 1 + log2(family / alpha) pairs (10 for sixteen
comparisons), consent is unanimity: p is the smallest that n pairs can give, so that every single pair points the same
way (lies within or beyond the margin).

Family-wise error, with noise that is symmetric under the null: at most alpha for each kind of statement, by theorem
where the sign-flip test reaches the level; with fewer pairs the t test carries the correction, and simulation says how
it fares (studies/results/simulations.md). All three kinds together err in at most 3 alpha of families by the union
bound, and in simulation. Of one comparison at most one kind can be false: a true difference is 0, within, or beyond.

The null is that two designs behave alike over seeds; then paired differences are symmetric, however skewed the scores.
Where the shapes differ, as when one design fails rarely but badly, the tests promise nothing: a few pairs often see no
failure. So the scores themselves belong beside every verdict, and beside a design at the ceiling the rate of failure
that its seeds do not exclude (`unseen_rate`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import NamedTuple

import numpy as np

from querykey.stats.comparison import Arms, Comparison, Key, Rule, Verdict
from querykey.stats.statistics import (
    Seeds,
    SeedSchedule,
    SignFlips,
    Tested,
    beyond_margin,
    differences,
    holm,
    mean_sd,
    minimum_seeds,
    paired_difference,
    probability_of_improvement,
    smallest_effect,
    within_margin,
)


def compare_family(
    family: Mapping[Key, Arms],
    baseline: str,
    rng: np.random.Generator,
    *,
    rule: Rule | None = None,
    schedule: SeedSchedule | None = None,
) -> list[Comparison]:
    """Compare every (task, design) of the family with the baseline, in the family's order.

    The family holds each comparison that was declared, also those without a cell: the correction counts them all.
    `rng` is drawn from only where there are more than 16 pairs. Without a schedule verdicts are meant for the
    declared number of seeds, and those of an unfinished run are provisional. With a schedule decisions fall at its
    looks alone, when all cells of a look are there: a decision is final and keeps the numbers of its look; what is
    still open is shown with all its pairs.

    Raises:
        ValueError: for a margin that is not positive and finite.
    """
    rule = rule or Rule()
    pairs = {key: arms.paired() for key, arms in family.items()}
    if schedule is None:
        return _look(pairs, baseline, rng, rule, rule.alpha, {})
    alpha = schedule.level(rule.alpha)
    seeds = sorted({seed for arms in family.values() for seed in (*arms.baseline, *arms.design)})
    decided: dict[Key, Comparison] = {}
    for first in (seeds[:look] for look in schedule.looks if look <= len(seeds)):
        now = {key: arms.paired(first) for key, arms in pairs.items()}
        if any(len(arms.design) < len(first) for key, arms in now.items() if key not in decided):
            break  # cells of this look are still to come
        looked = _look(now, baseline, rng, rule, alpha, decided)
        if len(first) == len(seeds):
            return looked  # nothing has come since
        decided = {(c.task, c.design): c for c in looked if c.decided}
    return _look(pairs, baseline, rng, rule, alpha, decided, at_look=False)


def improvement_over_tasks(family: Mapping[Key, Arms]) -> dict[str, float]:
    """By design, the probability that one of its runs beats one of the baseline on a task drawn at random.

    Tasks on which either has no cell are left out; NaN where none remains.
    """
    return {
        design: probability_of_improvement(
            [
                (_scores(arms.design), _scores(arms.baseline), arms.higher_is_better)
                for (_, name), arms in family.items()
                if name == design and arms.design and arms.baseline
            ]
        )
        for design in dict.fromkeys(design for _, design in family)
    }


class _Statement(NamedTuple):
    """A statement on one comparison: the p of its two tests after Holm, and whether it stands."""

    p: float
    p_flip: float
    stands: bool


class _Tests(NamedTuple):
    """p of the t test and of the sign-flip test of a statement, and the smallest that the second could be."""

    p_t: float
    p_flip: float
    smallest: float


def _look(
    family: Mapping[Key, Arms],
    baseline: str,
    rng: np.random.Generator,
    rule: Rule,
    alpha: float,
    decided: Mapping[Key, Comparison],
    *,
    at_look: bool = True,
) -> list[Comparison]:
    """The family tested at alpha. What earlier looks decided stays, and goes first in Holm's order."""
    comparisons = [decided.get(key) or _measure(key, arms, baseline, rng, rule) for key, arms in family.items()]
    level = alpha / max(1, len(family))
    statements = (_corrected([kind(c) for c in comparisons], alpha) for kind in (_differs, _within, _beyond))
    return [
        c if c.decided else _judge(c, differs, within, beyond, level, at_look)
        for c, differs, within, beyond in zip(comparisons, *statements, strict=True)
    ]


def _differs(c: Comparison) -> _Tests:
    return _tests(c, c.better is not None, Tested(c.difference.p_t, c.difference.p_flip), 2.0 ** (1 - c.difference.n))


def _within(c: Comparison) -> _Tests:
    return _tests(c, c.within_margin, c.within, 2.0**-c.difference.n)


def _beyond(c: Comparison) -> _Tests:
    return _tests(c, c.beyond_margin, c.beyond, 2.0 ** (1 - c.difference.n))


def _tests(c: Comparison, made: bool, tested: Tested, smallest: float) -> _Tests:
    """Of an earlier look a statement that was made stands, and one that was not will not be made any more."""
    if c.decided:
        return _Tests(0.0, 0.0, 0.0) if made else _Tests(1.0, 1.0, 0.0)
    return _Tests(*tested, smallest)


def _measure(key: Key, arms: Arms, baseline: str, rng: np.random.Generator, rule: Rule) -> Comparison:
    """What the cells of one comparison say by themselves: not yet corrected, not yet decided."""
    design, base = _scores(arms.design), _scores(arms.baseline)
    finite = np.isfinite(design) & np.isfinite(base)
    d = differences(base, design)
    flips = SignFlips.of(d, rng)
    difference = paired_difference(d, flips, confidence=rule.confidence)
    within, beyond = within_margin(d, flips, arms.margin), beyond_margin(d, flips, arms.margin)
    return Comparison(
        *key,
        baseline,
        arms.higher_is_better,
        Verdict.TOO_FEW if len(d) < minimum_seeds(rule.alpha) else Verdict.UNDECIDED,
        *mean_sd(design[finite]),
        *mean_sd(base[finite]),
        diverged=int((~finite).sum()),
        difference=difference,
        margin=arms.margin,
        within=within,
        beyond=beyond,
        p_holm=difference.p_t,
        p_flip_holm=difference.p_flip,
        p_within_holm=within.p_t,
        p_beyond_holm=beyond.p_t,
        within_margin=False,
        beyond_margin=False,
        smallest_effect=inf,
        level=rule.alpha,
        rule=rule,
    )


def _corrected(tests: Sequence[_Tests], alpha: float) -> list[_Statement]:
    """The statements with their p corrected by Holm."""
    p, p_flip, smallest = np.array(tests, dtype=float).reshape(-1, 3).T
    by_t, by_flip = holm(p), holm(p_flip)
    stands = (by_t <= alpha) & ((by_flip <= alpha) | (p_flip <= smallest))
    return [_Statement(*one) for one in zip(by_t.tolist(), by_flip.tolist(), stands.tolist(), strict=True)]


def _judge(
    c: Comparison, differs: _Statement, within: _Statement, beyond: _Statement, level: float, at_look: bool
) -> Comparison:
    """The comparison with its p corrected over the family and, at a look with enough seeds, its verdict."""
    verdict = c.verdict
    ready = at_look and verdict is not Verdict.TOO_FEW
    if ready and differs.stands:
        higher = c.difference.mean > 0
        verdict = Verdict.DESIGN_BETTER if higher == c.higher_is_better else Verdict.BASELINE_BETTER
    elif ready and within.stands:
        verdict = Verdict.EQUIVALENT
    return replace(
        c,
        verdict=verdict,
        p_holm=differs.p,
        p_flip_holm=differs.p_flip,
        p_within_holm=within.p,
        p_beyond_holm=beyond.p,
        within_margin=ready and within.stands,
        beyond_margin=ready and differs.stands and beyond.stands,
        smallest_effect=smallest_effect(c.difference.n, c.difference.sd, alpha=level, power=c.rule.power),
        level=level,
    )


def _scores(arm: Mapping[int, float]) -> Seeds:
    return np.array(list(arm.values()), dtype=float)
