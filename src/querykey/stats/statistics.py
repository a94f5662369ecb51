"""Statistics of two designs that were trained with the same seeds.

The data are paired: for one seed both designs see the same examples in the same order, so what is tested is the
difference d_s = design_s − baseline_s, one number per seed. Its questions, in the order of this file: how large is the
difference, and could it be noise (t test, sign-flip test); which of many differences stand together (Holm); is it
small enough not to matter (two one-sided tests); how many seeds would it take; and when to look if seeds are added.

Everything here is a pure function of numpy arrays. Differences that agree to rounding, 1e-12 of the values they come
from, are taken as equal, for a t test would divide by their rounding error.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, exp, inf, isfinite, log2, nan, sqrt
from typing import Literal

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

    [`low`, `high`] inverts the sign-flip test, [`t_low`, `t_high`] the t test, at the confidence that was asked for.
    The first is the one to print: at 95 % both cover that much where the two designs have like noise, however skewed,
    and where one is at the ceiling and the other skewed the first misses less (studies/results/simulations.md). A
    failure too rare to be seen in n seeds is in neither.
    Degenerate data get the limits of the formulas: without variance p_t is 0 (or 1 where every difference is 0) and
    both intervals are a point; with one pair, or none, p is 1, the intervals are infinite, and what one pair cannot
    give is NaN. `exact` says whether all sign flips were counted.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    t_low: float
    t_high: float
    p_t: float
    p_flip: float
    exact: bool


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests (Schuirmann 1987) of |mean difference| < margin: the larger p of the two, for each test."""

    margin: float
    p_t: float
    p_flip: float


def mean_sd(x: Seeds) -> tuple[float, float]:
    """Mean and sample standard deviation, NaN where there are too few values; equal values have none exactly."""
    sd = nan if len(x) < 2 else 0.0 if np.ptp(x) == 0 else float(x.std(ddof=1))
    return float(x.mean()) if len(x) else nan, sd


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
    n = len(d)
    mean, sd = mean_sd(d)
    low, high = flips.interval(confidence)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * sd / sqrt(n) if n > 1 else inf
    return PairedDifference(
        n=n,
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        t_low=mean - half if n > 1 else -inf,
        t_high=mean + half if n > 1 else inf,
        p_t=t_test(d),
        p_flip=flips.p(),
        exact=n <= EXACT_SEEDS,
    )


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
    """The sign-flip test (Fisher 1935) of the mean of d, and the interval that inverts it.

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
        return float(np.mean(sums <= ties if alternative == "greater" else sums >= -ties))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The means that the two-sided test does not reject; infinite where n pairs can reject none.

        From the c-th smallest to the c-th largest mean of a non-empty subset, c = ⌊(1 − confidence) 2^n / 2⌋
        (Hartigan 1969, Tritchler 1984). Six pairs at 95 % give the range of the differences, of confidence 1 − 2^(−5).
        """
        means = self.sums[self.sizes > 0] / self.sizes[self.sizes > 0]
        c = int((1 - confidence) / 2 * len(self.sums) + _TIES)
        if c < 1:
            return -inf, inf
        ordered = np.partition(means, (c - 1, len(means) - c))
        return float(ordered[c - 1]), float(ordered[len(means) - c])


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


def equivalence(d: Seeds, flips: SignFlips, margin: float) -> Equivalence:
    """Test that the mean difference lies within ±margin. Raises ValueError for an impossible margin."""
    check_margin(margin)
    return Equivalence(
        margin=margin,
        p_t=max(t_test(d, -margin, "greater"), t_test(d, margin, "less")),
        p_flip=max(flips.p(-margin, "greater"), flips.p(margin, "less")),
    )


def check_margin(margin: float) -> None:
    """Raise ValueError where no difference, or every difference, would lie within the margin."""
    if not (isfinite(margin) and margin > 0):
        raise ValueError(
            f"A margin of equivalence must be positive and finite, not {margin}: "
            "give the largest difference that would not matter, in the units of the metric."
        )


def noise_margin(baseline: Seeds, *, multiple: float = 1.0, floor: float = 0.01) -> float:
    """Margin from seed noise: `multiple` standard deviations of the baseline over its seeds, at least `floor`.

    With multiple 1, a mean difference within it is smaller than what another seed does to one run of the baseline.
    The floor serves baselines without noise (all seeds at the ceiling). The limits: a noisy baseline makes a wide
    margin; noise that the two designs do not share needs about 20 seeds to fit into one standard deviation; and what
    is tested is the margin as printed, while as an estimate of the true standard deviation it is good to a third at
    6 seeds, less with skewed noise. A margin that one can defend beforehand is better.
    """
    sd = mean_sd(baseline[np.isfinite(baseline)])[1]
    margin = floor if np.isnan(sd) else max(floor, multiple * sd)
    check_margin(margin)
    return margin


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
        """Refuse looks that do not grow."""
        if not self.looks or self.looks[0] < 1 or any(a >= b for a, b in pairwise(self.looks)):
            raise ValueError(f"Looks must be growing numbers of seeds, such as 6, 10, 16, 24, not {self.looks}.")

    @classmethod
    def within(cls, budget: int) -> SeedSchedule:
        """The standard looks below the budget, and the budget itself as the last."""
        return cls((*(look for look in cls.looks if look < budget), budget))

    def level(self, alpha: float) -> float:
        """What each look may spend of alpha."""
        return alpha / len(self.looks)

    def after(self, seeds: int) -> int | None:
        """The next look beyond this number of seeds, None when the budget is spent."""
        return next((look for look in self.looks if look > seeds), None)


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
