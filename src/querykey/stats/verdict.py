"""From the statistics of a family of comparisons to words.

A family holds every comparison that a plan declares before it runs: each (task, design) against one baseline. Two
claims can be made of each:

- *better*: the mean paired difference is not 0;
- *no difference within the margin*: the mean paired difference lies within ± margin (two one-sided tests).

A claim needs p ≤ alpha of the t test after Holm over the whole family, and the consent of the sign-flip test: its own
p after Holm ≤ alpha or, where n pairs are too few for that, the smallest p that it can have, which says that every
single pair points the same way (lies within the margin). So from 1 + log2(family / alpha) pairs on, 10 for sixteen
comparisons, the family-wise error is at most alpha for every noise that is symmetric under the null, by theorem; with
fewer the t test carries the correction, and simulation says how it fares (studies/results/simulations.md). The two
kinds of claim are corrected apart: any false "better" in at most a share alpha of families, and any false "no
difference" likewise. Of one comparison at most one of the two can be false.

The null is that two designs behave alike over seeds; then paired differences are symmetric, however skewed the scores.
Means that are equal because one design fails rarely but badly are beyond a few pairs: most often they see no failure,
and say that it is better, or no different. So the scores themselves belong beside every verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import inf, isfinite
from typing import NamedTuple

import numpy as np

from querykey.stats.statistics import (
    Equivalence,
    PairedDifference,
    Seeds,
    SeedSchedule,
    SignFlips,
    check_margin,
    differences,
    equivalence,
    holm,
    mean_sd,
    minimum_seeds,
    noise_margin,
    paired_difference,
    probability_of_improvement,
    smallest_effect,
    sufficient_seeds,
)

Key = tuple[str, str]


class Arms(NamedTuple):
    """Scores by seed on one task, of the baseline and of a design; a diverged cell is NaN, one not yet run absent.

    `margin` is the margin of equivalence in units of the metric; None takes it from the baseline's seed noise.
    """

    baseline: Mapping[int, float]
    design: Mapping[int, float]
    higher_is_better: bool
    margin: float | None = None

    def paired(self, seeds: Iterable[int] | None = None) -> Arms:
        """These arms with nothing but the seeds that both have, out of `seeds` where given."""
        common = sorted(self.baseline.keys() & self.design.keys() & set(self.baseline if seeds is None else seeds))
        baseline, design = ({seed: arm[seed] for seed in common} for arm in (self.baseline, self.design))
        return self._replace(baseline=baseline, design=design)


@dataclass(frozen=True)
class Rule:
    """How verdicts are reached, declared before a plan runs."""

    alpha: float = 0.05
    confidence: float = 0.95
    power: float = 0.8
    margin_multiple: float = 1.0
    margin_floor: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what is no probability, and margins that are none."""
        for name in ("alpha", "confidence", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not be {getattr(self, name)}.")
        check_margin(self.margin_floor)
        if not (isfinite(self.margin_multiple) and self.margin_multiple >= 0):
            raise ValueError(f"margin_multiple must be 0 or more and finite, not {self.margin_multiple}.")


class Verdict(StrEnum):
    """What can be said of a design against the baseline."""

    DESIGN_BETTER = "design better"
    BASELINE_BETTER = "baseline better"
    EQUIVALENT = "no difference within the margin"
    UNDECIDED = "cannot tell"
    TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Comparison:
    """A design against the baseline on one task: all numbers, and the words. Differences are design minus baseline.

    `p_holm`, `p_flip_holm` and `p_equivalence_holm` are adjusted over the family. `diverged` counts the pairs that
    were left out because a cell of theirs has no finite score. `within_margin` says that the difference is shown to
    lie within the margin, which a better design's may do as well. `smallest_effect` is what so many pairs with this
    noise show with the rule's power at `level`, the share of alpha that one comparison has in Holm's strictest step.
    """

    task: str
    design: str
    baseline: str
    higher_is_better: bool
    verdict: Verdict
    design_mean: float
    design_sd: float
    baseline_mean: float
    baseline_sd: float
    diverged: int
    difference: PairedDifference
    p_holm: float
    p_flip_holm: float
    equivalence: Equivalence
    p_equivalence_holm: float
    within_margin: bool
    smallest_effect: float
    level: float
    rule: Rule

    @property
    def decided(self) -> bool:
        """Whether more seeds are not needed."""
        return self.verdict not in (Verdict.UNDECIDED, Verdict.TOO_FEW)

    @property
    def better(self) -> str | None:
        """The name of the better design, None where none is shown to be."""
        names = {Verdict.DESIGN_BETTER: self.design, Verdict.BASELINE_BETTER: self.baseline}
        return names.get(self.verdict)

    @property
    def sufficient_seeds(self) -> int | None:
        """How many seeds would do if the observed mean and noise were the true ones; None beyond 1000."""
        d = self.difference
        if d.n < 2:
            return minimum_seeds(self.rule.alpha)
        margin, power = self.equivalence.margin, self.rule.power
        return sufficient_seeds(d.mean, d.sd, margin=margin, alpha=self.level, power=power, more_than=d.n)

    @property
    def words(self) -> str:
        """The verdict in words."""
        margin = f"the margin ({self.equivalence.margin:.3g})"
        if self.better is not None:
            return f"{self.better} is better" + (f", by less than {margin}" if self.within_margin else "")
        if self.verdict is Verdict.EQUIVALENT:
            return f"no difference within {margin}"
        if self.verdict is Verdict.TOO_FEW:
            return f"too few seeds for a verdict ({minimum_seeds(self.rule.alpha)} would do)"
        enough = self.sufficient_seeds
        would_do = "more than 1000 would be needed" if enough is None else f"about {enough} would do"
        return f"cannot tell with {self.difference.n} seeds ({would_do})"

    def sentence(self) -> str:
        """The comparison in one line of plain language."""
        d = self.difference
        interval = f" [{d.low:+.3f}, {d.high:+.3f}]" if isfinite(d.low) else ""
        numbers = (
            f"{self.design_mean:.3f} against {self.baseline_mean:.3f}, "
            f"difference {d.mean:+.3f}{interval} over {d.n} seeds "
            f"(t test {_p(d.p_t)}, after Holm {_p(self.p_holm)}; sign-flip test {_p(d.p_flip)})"
        )
        without = f", {self.diverged} diverged and left out" if self.diverged else ""
        subject = f"{self.task}, {self.design} against {self.baseline}"
        return f"{subject}: {numbers if d.n else 'no pair has finished'}{without}: {self.words}."

    def row(self) -> dict[str, str | float | bool]:
        """All numbers and the words as one flat record, for a table."""
        flat = asdict(self)
        nested = {name: flat.pop(name) for name in ("difference", "equivalence")}
        del flat["rule"]
        flat |= {f"{name}_{field}": x for name, values in nested.items() for field, x in values.items()}
        return flat | {"verdict": str(self.verdict), "words": self.words}


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
    still open is shown with all its pairs. Raises ValueError for a margin that is not positive and finite.
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


class _Claim(NamedTuple):
    """A claim about one comparison: the p of its two tests after Holm, and whether it stands."""

    p: float
    p_flip: float
    stands: bool


_MADE = (0.0, 0.0, 0.0)  # p of the t test, of the sign-flip test, and the smallest that this could be
_NOT_MADE = (1.0, 1.0, 0.0)


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
    """The family tested at alpha. What earlier looks decided stays as it is; claims made go first in Holm's order."""
    comparisons = [decided.get(key) or _measure(key, arms, baseline, rng, rule) for key, arms in family.items()]
    better, same = [], []
    for c in comparisons:
        d, e = c.difference, c.equivalence
        made = c.decided
        better.append((_MADE if c.better is not None else _NOT_MADE) if made else (d.p_t, d.p_flip, 2.0 ** (1 - d.n)))
        same.append((_MADE if c.within_margin else _NOT_MADE) if made else (e.p_t, e.p_flip, 2.0**-d.n))
    claims = zip(comparisons, _claims(better, alpha), _claims(same, alpha), strict=True)
    level = alpha / max(1, len(family))
    return [c if c.decided else _judge(c, differs, equals, level, at_look) for c, differs, equals in claims]


def _measure(key: Key, arms: Arms, baseline: str, rng: np.random.Generator, rule: Rule) -> Comparison:
    """What the cells of one comparison say by themselves: not yet corrected, not yet decided."""
    design, base = _scores(arms.design), _scores(arms.baseline)
    finite = np.isfinite(design) & np.isfinite(base)
    margin = arms.margin
    if margin is None:
        margin = noise_margin(base, multiple=rule.margin_multiple, floor=rule.margin_floor)
    d = differences(base, design)
    flips = SignFlips.of(d, rng)
    difference, equal = paired_difference(d, flips, confidence=rule.confidence), equivalence(d, flips, margin)
    return Comparison(
        *key,
        baseline,
        arms.higher_is_better,
        Verdict.TOO_FEW if len(d) < minimum_seeds(rule.alpha) else Verdict.UNDECIDED,
        *mean_sd(design[finite]),
        *mean_sd(base[finite]),
        diverged=int((~finite).sum()),
        difference=difference,
        p_holm=difference.p_t,
        p_flip_holm=difference.p_flip,
        equivalence=equal,
        p_equivalence_holm=equal.p_t,
        within_margin=False,
        smallest_effect=inf,
        level=rule.alpha,
        rule=rule,
    )


def _claims(tests: list[tuple[float, float, float]], alpha: float) -> list[_Claim]:
    """One claim from each (p of the t test, p of the sign-flip test, smallest p that this could have)."""
    p, p_flip, smallest = np.array(tests, dtype=float).reshape(-1, 3).T
    by_t, by_flip = holm(p), holm(p_flip)
    stands = (by_t <= alpha) & ((by_flip <= alpha) | (p_flip <= smallest))
    return [_Claim(*claim) for claim in zip(by_t.tolist(), by_flip.tolist(), stands.tolist(), strict=True)]


def _judge(c: Comparison, differs: _Claim, equals: _Claim, level: float, at_look: bool) -> Comparison:
    """The comparison with its p corrected over the family and, at a look with enough seeds, its verdict."""
    verdict = c.verdict
    ready = at_look and verdict is not Verdict.TOO_FEW
    if ready and differs.stands:
        higher = c.difference.mean > 0
        verdict = Verdict.DESIGN_BETTER if higher == c.higher_is_better else Verdict.BASELINE_BETTER
    elif ready and equals.stands:
        verdict = Verdict.EQUIVALENT
    return replace(
        c,
        verdict=verdict,
        p_holm=differs.p,
        p_flip_holm=differs.p_flip,
        p_equivalence_holm=equals.p,
        within_margin=ready and equals.stands,
        smallest_effect=smallest_effect(c.difference.n, c.difference.sd, alpha=level, power=c.rule.power),
        level=level,
    )


def _scores(arm: Mapping[int, float]) -> Seeds:
    return np.array(list(arm.values()), dtype=float)


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
