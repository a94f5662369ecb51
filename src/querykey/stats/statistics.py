"""Statistics of two designs that were trained with the same seeds.

The data are paired: for one seed both designs see the same examples in the same order, so the tests are about the
difference d_s = design_s − baseline_s, one number per seed. In the order of this file: the size of the difference and
whether it could be noise (t interval, t test, sign-flip test); tests against a margin that does not matter; Holm's
correction for many differences; how many seeds are needed; and when to look if seeds are added.

All functions are pure and take numpy arrays. Differences that agree to rounding (1e-12 of the values that they come
from) are taken as equal: a t test would divide by their rounding error.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, exp, fsum, inf, isfinite, log2, nan, sqrt
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

EXACT_SEEDS = 16  # up to here all 2^n sign flips are counted; beyond, 2^16 random ones
MOST_SEEDS = 1000  # where the search for a sufficient number of seeds ends
_ROUNDING = 1e-12  # relative error of a difference, against the values it comes from
_TIES = 1e-10  # sums this close, relatively, count as equal

Seeds = Float[np.ndarray, "seeds"]
Runs = Float[np.ndarray, "_"]  # of any number, another in each array
Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class PairedDifference:
    """Mean paired difference, design minus baseline, in the units of the metric.

    [`low`, `high`] is the t interval at the confidence that was asked for, the one interval that reports print. At 95 %
    it covers at least 94 % where the two designs have noise of one shape, however skewed, and less where one design is
    at the ceiling and the other is not (studies/results/simulations.md). A failure too rare to be seen in n seeds is in
    no interval; see `unseen_rate`.

    Degenerate data get the limits of the formulas: without variance p_t is 0 (or 1 where every difference is 0) and the
    interval is a point. With one pair, or none, p is 1, the interval is infinite, and sd is NaN.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p_t: float
    p_flip: float


class Tested(NamedTuple):
    """p of one statement, by the t test and by the sign-flip test."""

    p_t: float
    p_flip: float


def mean_sd(x: Seeds) -> tuple[float, float]:
    """Mean and sample standard deviation, NaN where there are too few values; equal values have none exactly."""
    values = x.tolist()  # of so few, Python sums faster than numpy
    if not values:
        return nan, nan
    mean = fsum(values) / len(values)
    if min(values) == max(values):
        return values[0], 0.0 if len(values) > 1 else nan
    return mean, sqrt(fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def differences(baseline: Seeds, design: Seeds) -> Float[np.ndarray, "pairs"]:
    """Design minus baseline where both are finite: a pair with a diverged cell (NaN, inf) is left out."""
    finite = np.isfinite(baseline) & np.isfinite(design)
    a, b = baseline[finite], design[finite]
    d = b - a
    rounding = _ROUNDING * max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    if d.size and np.ptp(d) <= rounding:
        d = np.full_like(d, d.mean())
    return np.where(np.abs(d) <= rounding, 0.0, d)


def paired_difference(d: Seeds, flips: SignFlips, *, confidence: float = 0.95) -> PairedDifference:
    """How large the differences are and whether they could be noise; `flips` are those of d."""
    mean, sd = mean_sd(d)
    low, high = t_interval(d, confidence)
    return PairedDifference(len(d), mean, sd, low, high, t_test(d), flips.p())


def t_interval(d: Seeds, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean; infinite for fewer than two values."""
    n = len(d)
    if n < 2:
        return -inf, inf
    mean, sd = mean_sd(d)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * sd / sqrt(n)
    return mean - half, mean + half


def t_test(d: Seeds, mean: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """p of Student's one-sample t test of a mean; without variance the limit, 0 or 1; 1 for fewer than two values."""
    if alternative == "two-sided":
        return min(1.0, 2 * min(t_test(d, mean, "greater"), t_test(d, mean, "less")))
    center, sd = mean_sd(d)
    away = center - mean if alternative == "greater" else mean - center
    if len(d) < 2 or sd == 0:
        return 0.0 if len(d) > 1 and away > _TIES * abs(mean) else 1.0
    return float(special.stdtr(len(d) - 1, -away / (sd / sqrt(len(d)))))


@dataclass(frozen=True, eq=False)
class SignFlips:
    """The sign-flip test (Fisher 1935) of the mean of d.

    Its p is the share of all 2^n sign flips of d − mean whose sum lies at least as far out as that of d − mean: exact
    for every noise that is symmetric about the mean, as paired differences are where two designs are exchangeable.
    With n pairs no p is below 2^(1−n), one-sided 2^(−n). To flip the signs of a subset is to take twice its sum from
    the total, so the sums and sizes of all subsets are all that is needed; beyond 16 pairs, of 2^16 random subsets.
    """

    sums: Float[np.ndarray, "subsets"]
    sizes: Float[np.ndarray, "subsets"]

    @classmethod
    def of(cls, d: Seeds, rng: np.random.Generator) -> SignFlips:
        """All subsets of d, the empty one first, or random ones drawn from `rng` where d has more than 16 values."""
        return cls(*(_all_subsets(d) if len(d) <= EXACT_SEEDS else _random_subsets(d, rng)))

    def p(self, mean: float = 0.0, alternative: Alternative = "two-sided") -> float:
        """p of the test of this mean."""
        if alternative == "two-sided":
            return min(1.0, 2 * min(self.p(mean, "greater"), self.p(mean, "less")))
        sums = self.sums - mean * self.sizes
        ties = _TIES * np.abs(sums).max()
        return np.count_nonzero(sums <= ties if alternative == "greater" else sums >= -ties) / len(sums)


def within_margin(d: Seeds, flips: SignFlips, margin: float) -> Tested:
    """p of two one-sided tests (Schuirmann 1987) that the mean difference lies within ±margin.

    Raises:
        ValueError: if the margin is not positive and finite.
    """
    check_margin(margin)
    return Tested(
        max(t_test(d, -margin, "greater"), t_test(d, margin, "less")),
        max(flips.p(-margin, "greater"), flips.p(margin, "less")),
    )


def beyond_margin(d: Seeds, flips: SignFlips, margin: float) -> Tested:
    """p of the tests that the mean difference lies outside ±margin, on its own side.

    They are twice the one-sided p, so that p_t ≤ 5 % says that the 95 % interval lies beyond the margin.

    Raises:
        ValueError: if the margin is not positive and finite.
    """
    check_margin(margin)
    own: tuple[float, Alternative] = (margin, "greater") if mean_sd(d)[0] > 0 else (-margin, "less")
    return Tested(min(1.0, 2 * t_test(d, *own)), min(1.0, 2 * flips.p(*own)))


def check_margin(margin: float) -> None:
    """Raise ValueError where no difference, or every difference, would lie within the margin."""
    if not (isfinite(margin) and margin > 0):
        raise ValueError(
            f"a margin must be positive and finite, not {margin}; "
            "give the largest difference that would not matter, in the units of the metric"
        )


def unseen_rate(n: int, confidence: float = 0.95) -> float:
    """The largest rate of a failure that n seeds without one do not exclude: 0 of 8 allow 31 %.

    (1 − rate)^n = 1 − confidence, which the rule of three, 3 / n, approximates.
    """
    return 1.0 - float((1 - confidence) ** (1 / n))


def holm(p: Float[np.ndarray, "family"]) -> Float[np.ndarray, "family"]:
    """Holm's (1979) adjusted p-values; a missing member of the family is NaN, stays so and counts all the same.

    The k-th smallest of m is multiplied by m − k + 1, and none may fall below the one before it. (statsmodels has
    this too, but collects all garbage of the process at every call, which a live table cannot wait for.)
    """
    order = np.argsort(p)  # puts NaN last
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return adjusted


def minimum_seeds(alpha: float) -> int:
    """The fewest pairs whose two-sided sign-flip test can reach alpha, 2^(1−n) ≤ alpha: 6 for 0.05."""
    return 1 + ceil(log2(1 / alpha))


def smallest_effect(n: int, sd: float, *, alpha: float, power: float = 0.8) -> float:
    """The smallest true difference that n pairs with this noise show, by the t test, with the given power."""
    return inf if n < 2 else sd * _standard_effect(n, alpha, power)


def sufficient_seeds(
    mean: float, sd: float, *, margin: float, alpha: float, power: float = 0.8, more_than: int = 0
) -> int | None:
    """How many pairs would decide, by t tests, if this mean and noise were the true ones; None beyond 1000.

    Either a difference or its smallness would do. Never fewer than let the sign-flip test reach alpha. The mean and
    the noise are estimates, so this is a hint for planning.
    """

    def decides(n: int) -> bool:
        shows = _power(abs(mean) / sd, n, alpha / 2)
        return max(shows, _power_equivalence(mean, sd, margin, n, alpha)) >= power

    least = max(minimum_seeds(alpha), more_than + 1)
    if sd == 0:
        return least  # any mean shows, or is small enough
    enough = least + bisect_left(range(least, MOST_SEEDS + 1), True, key=decides)
    return enough if enough <= MOST_SEEDS else None


def probability_of_improvement(tasks: Iterable[tuple[Runs, Runs, bool]]) -> float:
    """Chance that a run of a design beats a run of the baseline on a task drawn at random (2108.13264).

    One (scores of the design, scores of the baseline, higher is better) per task. All pairs of runs are compared,
    ties count one half, and a diverged run loses to every finished one. NaN without a task. No interval comes with
    it: bootstraps over 6 to 10 seeds cover too little to be printed.
    """
    chances = []
    for design, baseline, higher_is_better in tasks:
        ours, theirs = (
            np.where(np.isfinite(scores), scores if higher_is_better else -scores, -inf)
            for scores in (design, baseline)
        )
        chances.append(np.mean((ours[:, None] > theirs) + (ours[:, None] == theirs) / 2))
    return float(np.mean(chances)) if chances else nan


@dataclass(frozen=True)
class SeedSchedule:
    """The numbers of seeds at which a growing comparison is looked at, declared before it runs.

    Each of K looks tests at alpha / K (Bonferroni). By the union bound the family-wise error over all looks is then
    at most alpha, whatever the dependence between looks and the shape of the noise, provided each look's test holds
    its own level. O'Brien-Fleming boundaries leave almost nothing to the first looks, and rest on normal increments;
    always-valid tests of signs cannot decide a family of forty before eleven seeds.
    """

    looks: tuple[int, ...] = (6, 10, 16, 24)

    def __post_init__(self) -> None:
        """Raise ValueError for looks that do not grow."""
        if not self.looks or self.looks[0] < 1 or any(a >= b for a, b in pairwise(self.looks)):
            raise ValueError(f"looks must be growing numbers of seeds, such as 6, 10, 16, 24, not {self.looks}")

    @classmethod
    def within(cls, budget: int) -> SeedSchedule:
        """The standard looks below the budget, and the budget itself as the last."""
        return cls((*(look for look in cls.looks if look < budget), budget))

    def level(self, alpha: float) -> float:
        """What each look may spend of alpha."""
        return alpha / len(self.looks)


def _all_subsets(d: Seeds) -> tuple[Float[np.ndarray, "subsets"], Float[np.ndarray, "subsets"]]:
    sums = sizes = np.zeros(1)
    for x in d:
        sums, sizes = np.concatenate([sums, sums + x]), np.concatenate([sizes, sizes + 1])
    return sums, sizes


def _random_subsets(
    d: Seeds, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "subsets"], Float[np.ndarray, "subsets"]]:
    chosen = rng.integers(0, 2, (2**EXACT_SEEDS, len(d)), dtype=np.bool_).astype(float)
    chosen[0] = 0  # d as it is, one of its own flips: without it p could be 0
    return chosen @ d, chosen.sum(1)


def _power(effect: float, n: int, alpha: float) -> float:
    """Chance that a one-sided t test of n pairs rejects when the true mean is `effect` standard deviations.

    The upper tail of the noncentral t distribution, as the mean over the sampling distribution of the standard
    deviation: good to 1e-3, and a number for all arguments, which scipy.stats.nct is not.
    """
    critical = special.stdtrit(n - 1, 1 - alpha)
    return float(special.ndtr(effect * sqrt(n) - critical * _sampled_sd(n)).mean())


@lru_cache(maxsize=MOST_SEEDS)
def _sampled_sd(n: int) -> Float[np.ndarray, "quantiles"]:
    """Equally probable standard deviations of n standard normal values."""
    upper = (np.arange(2000) + 0.5) / 2000
    return np.sqrt(special.chdtri(n - 1, upper) / (n - 1))


@lru_cache(maxsize=1024)
def _standard_effect(n: int, alpha: float, power: float) -> float:
    """The effect in standard deviations that a two-sided test finds, in its right direction, with this power."""
    lower, upper = -10.0, 30.0  # of its logarithm
    log_effect = optimize.brentq(lambda x: _power(exp(x), n, alpha / 2) - power, lower, upper)
    return exp(log_effect)


def _power_equivalence(mean: float, sd: float, margin: float, n: int, alpha: float) -> float:
    """Lower bound of the power of two one-sided t tests: 1 minus the chance that either fails."""
    return sum(_power((margin + side * mean) / sd, n, alpha) for side in (-1, 1)) - 1
