"""Statistics of paired runs: against scipy and statsmodels, by hand, and by what must hold for any numbers."""

from __future__ import annotations

from math import inf, isnan, nan

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from querykey.stats import statistics
from querykey.stats.statistics import (
    PairedDifference,
    SeedSchedule,
    SignFlips,
    beyond_margin,
    check_margin,
    differences,
    holm,
    mean_sd,
    minimum_seeds,
    paired_difference,
    probability_of_improvement,
    smallest_effect,
    sufficient_seeds,
    t_test,
    unseen_rate,
    within_margin,
)

ALTERNATIVES = ("two-sided", "greater", "less")
scores = st.floats(-100, 100).map(lambda x: round(x, 3))
samples = st.lists(scores, min_size=2, max_size=9).map(np.array)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def measured(d: np.ndarray, rng: np.random.Generator, **options: float) -> PairedDifference:
    return paired_difference(d, SignFlips.of(d, rng), **options)


def count_by_convolution(d: list[int]) -> dict[int, int]:
    """How many of the 2^n sign flips of integers have each sum."""
    counts = {0: 1}
    for x in d:
        step: dict[int, int] = {}
        for total, count in counts.items():
            for sign in (-1, 1):
                step[total + sign * x] = step.get(total + sign * x, 0) + count
        counts = step
    return counts


class TestDifferences:
    def test_leaves_out_pairs_with_a_diverged_cell(self) -> None:
        baseline, design = np.array([1.0, nan, 3.0, 4.0, 5.0]), np.array([0.5, 2.0, inf, 4.5, -inf])
        assert differences(baseline, design).tolist() == [-0.5, 0.5]

    def test_differences_that_agree_to_rounding_are_equal(self) -> None:
        baseline = np.array([0.1, 0.2, 0.7])
        d = differences(baseline, baseline + 0.1)
        assert len(set((baseline + 0.1 - baseline).tolist())) > 1  # in floating point they are not
        assert len(set(d.tolist())) == 1

    def test_a_difference_that_is_rounding_is_zero(self) -> None:
        assert differences(np.array([0.3, 5.0]), np.array([0.1 + 0.2, 7.0])).tolist() == [0.0, 2.0]


class TestTTest:
    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    @pytest.mark.parametrize("mean", [0.0, -0.4])
    def test_equals_scipy(self, rng: np.random.Generator, alternative: str, mean: float) -> None:
        for n in (2, 3, 7, 23):
            d = rng.gamma(1, 1, n) - 0.7
            expected = stats.ttest_1samp(d, mean, alternative=alternative).pvalue
            assert t_test(d, mean, alternative) == pytest.approx(expected, rel=1e-9)

    def test_interval_equals_scipy(self, rng: np.random.Generator) -> None:
        d = rng.normal(size=7)
        result = measured(d, rng, confidence=0.9)
        expected = stats.ttest_1samp(d, 0).confidence_interval(0.9)
        assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
        assert (result.mean, result.sd) == pytest.approx((d.mean(), d.std(ddof=1)))


class TestSignFlips:
    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    @pytest.mark.parametrize("mean", [0.0, 0.25])
    def test_p_equals_scipy(self, rng: np.random.Generator, alternative: str, mean: float) -> None:
        for d in (rng.normal(0.3, 1, 5), rng.normal(0.3, 1, 11), np.array([1.0, 0.0, 2.0, 0.0, -1.0, 3.0, 3.0])):
            expected = stats.permutation_test(
                (d - mean,), np.mean, permutation_type="samples", alternative=alternative, n_resamples=10**4
            )
            assert SignFlips.of(d, rng).p(mean, alternative) == pytest.approx(expected.pvalue)

    def test_by_hand(self, rng: np.random.Generator) -> None:
        # the sums of ±1 ±2 ±4 are ±7, ±5, ±3, ±1: of eight, six are at least 3 = 1 − 2 + 4 away from zero
        flips = SignFlips.of(np.array([1.0, -2.0, 4.0]), rng)
        assert flips.p() == 6 / 8
        assert flips.p(alternative="greater") == 3 / 8
        assert flips.p(alternative="less") == 6 / 8

    @pytest.mark.parametrize("n", [1, 2, 6, 16])
    def test_the_floor(self, rng: np.random.Generator, n: int) -> None:
        flips = SignFlips.of(np.arange(1.0, n + 1), rng)
        assert flips.p() == 2.0 ** (1 - n)
        assert flips.p(alternative="greater") == 2.0**-n

    def test_many_seeds_are_sampled(self, rng: np.random.Generator) -> None:
        d = rng.integers(-5, 9, 20)
        total, counts = int(d.sum()), count_by_convolution(d.tolist())
        exact = sum(count for s, count in counts.items() if abs(s) >= abs(total)) / 2**20
        result = measured(d.astype(float), rng)
        assert result.p_flip == pytest.approx(exact, abs=4 * (exact / 2**16) ** 0.5)
        assert 0.01 < exact < 0.5

    def test_sampled_p_is_never_zero_and_repeats(self) -> None:
        d = np.full(40, 1.0)
        first, again = (SignFlips.of(d, np.random.default_rng(3)).p() for _ in range(2))
        assert first == again > 0

    @settings(max_examples=30, deadline=None)
    @given(samples)
    def test_sign_symmetry(self, d: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        one, other = measured(d, rng), measured(-d, rng)
        assert other.mean == -one.mean
        assert (other.p_t, other.p_flip) == (one.p_t, one.p_flip)
        assert (other.low, other.high) == (-one.high, -one.low)

    @settings(max_examples=30, deadline=None)
    @given(samples, st.floats(0.01, 100))
    def test_scale_equivariance(self, d: np.ndarray, scale: float) -> None:
        rng = np.random.default_rng(0)
        one, other = measured(d, rng), measured(scale * d, rng)
        assume(one.sd == 0 or one.sd > 1e-6)
        assert (other.p_t, other.p_flip) == pytest.approx((one.p_t, one.p_flip), rel=1e-6, abs=1e-12)
        expected = [scale * x for x in (one.mean, one.low, one.high)]
        assert [other.mean, other.low, other.high] == pytest.approx(expected)


class TestDegenerate:
    def test_no_difference_in_any_seed(self, rng: np.random.Generator) -> None:
        result = measured(np.zeros(6), rng)
        assert (result.mean, result.sd, result.p_t, result.p_flip) == (0, 0, 1, 1)
        assert (result.low, result.high) == (0, 0)

    def test_the_same_difference_in_every_seed(self, rng: np.random.Generator) -> None:
        result = measured(np.full(6, -0.25), rng)
        assert (result.p_t, result.p_flip) == (0, 2**-5)
        assert (result.low, result.high) == (-0.25, -0.25)

    @pytest.mark.parametrize("d", [[], [2.0]])
    def test_fewer_than_two_pairs(self, rng: np.random.Generator, d: list[float]) -> None:
        result = measured(np.array(d), rng)
        assert (result.n, result.p_t, result.p_flip) == (len(d), 1, 1)
        assert (result.low, result.high) == (-inf, inf)
        assert isnan(result.sd)
        assert isnan(result.mean) or d

    def test_mean_sd_of_equal_values_is_exact(self) -> None:
        assert np.full(3, 0.1).std(ddof=1) > 0  # in floating point
        assert mean_sd(np.full(3, 0.1))[1] == 0


class TestHolm:
    def test_by_hand(self) -> None:
        assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])

    def test_a_missing_member_counts(self) -> None:
        adjusted = holm(np.array([nan, 0.01, nan, 0.2]))
        assert adjusted[[1, 3]] == pytest.approx([0.04, 0.6])
        assert np.isnan(adjusted[[0, 2]]).all()

    def test_nobody(self) -> None:
        assert holm(np.array([])).size == 0

    @pytest.mark.parametrize("n", [1, 2, 11])
    def test_equals_statsmodels(self, rng: np.random.Generator, n: int) -> None:
        p = (rng.random(n) ** 3).round(1)  # with ties
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12).map(np.array))
    def test_between_raw_and_bonferroni_and_in_order(self, p: np.ndarray) -> None:
        adjusted = holm(p)
        assert (p <= adjusted).all()
        assert (adjusted <= np.minimum(1, len(p) * p)).all()
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


class TestMargins:
    def test_within_equals_statsmodels(self, rng: np.random.Generator) -> None:
        baseline, design = rng.normal(0.7, 0.1, 7), rng.normal(0.72, 0.1, 7)
        d = design - baseline
        expected, _, _ = ttost_paired(design, baseline, -0.15, 0.15)
        assert within_margin(d, SignFlips.of(d, rng), 0.15).p_t == pytest.approx(expected)

    def test_sign_flips_within_equal_scipy(self, rng: np.random.Generator) -> None:
        d = rng.normal(0.02, 0.1, 7)
        sides = [
            stats.permutation_test(
                (d + shift,), np.mean, permutation_type="samples", alternative=alternative, n_resamples=10**4
            ).pvalue
            for shift, alternative in ((0.08, "greater"), (-0.08, "less"))
        ]
        assert within_margin(d, SignFlips.of(d, rng), 0.08).p_flip == pytest.approx(max(sides))

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_beyond_is_the_two_sided_test_of_the_margin(self, rng: np.random.Generator, sign: int) -> None:
        d = sign * rng.normal(0.2, 0.1, 8)
        found = beyond_margin(d, SignFlips.of(d, rng), 0.12)
        assert found.p_t == pytest.approx(stats.ttest_1samp(d, sign * 0.12).pvalue)
        assert found.p_flip == pytest.approx(SignFlips.of(d, rng).p(sign * 0.12))

    @settings(max_examples=60, deadline=None)
    @given(samples, st.floats(0.01, 50))
    def test_beyond_is_shown_where_the_interval_shows_it_and_never_together_with_within(
        self, d: np.ndarray, margin: float
    ) -> None:
        rng = np.random.default_rng(0)
        flips, found = SignFlips.of(d, rng), measured(d, rng)
        assume(found.sd > 1e-6)
        beyond, within = beyond_margin(d, flips, margin), within_margin(d, flips, margin)
        outside = found.low > margin or found.high < -margin
        assume(min(abs(found.low - margin), abs(found.high + margin)) > 1e-6)
        assert (beyond.p_t <= 0.05) == outside
        assert max(beyond.p_t, within.p_t) > 0.05
        assert beyond.p_t >= t_test(d) - 1e-12

    def test_identical_runs_are_equal_at_any_margin(self, rng: np.random.Generator) -> None:
        d = np.zeros(6)
        assert within_margin(d, SignFlips.of(d, rng), 1e-6) == (0, 2**-6)
        assert beyond_margin(d, SignFlips.of(d, rng), 1e-6) == (1, 1)

    @pytest.mark.parametrize("sign", [-1, 1])
    def test_a_difference_of_just_the_margin_is_neither_within_nor_beyond(
        self, rng: np.random.Generator, sign: int
    ) -> None:
        d = np.full(6, sign * 0.01)
        assert within_margin(d, SignFlips.of(d, rng), 0.01) == (1, 1)
        assert beyond_margin(d, SignFlips.of(d, rng), 0.01) == (1, 1)

    @pytest.mark.parametrize("margin", [0.0, -0.1, nan, inf])
    def test_impossible_margins(self, rng: np.random.Generator, margin: float) -> None:
        d = rng.normal(size=7)
        for call in (within_margin, beyond_margin):
            with pytest.raises(ValueError, match="must be positive and finite, not"):
                call(d, SignFlips.of(d, rng), margin)
        with pytest.raises(ValueError, match="must be positive and finite, not"):
            check_margin(margin)

    @pytest.mark.parametrize("n", [1, 6, 8, 30])
    def test_failures_that_were_not_seen(self, n: int) -> None:
        assert unseen_rate(n) == pytest.approx(stats.beta.ppf(0.95, 1, n))  # Clopper and Pearson, with 0 of n
        assert unseen_rate(8) == pytest.approx(0.312, abs=1e-3)


class TestPlanning:
    def test_minimum_seeds(self) -> None:
        assert [minimum_seeds(alpha) for alpha in (0.05, 2**-5, 0.031, 0.05 / 16)] == [6, 6, 7, 10]

    @pytest.mark.parametrize("n", [2, 3, 6, 10, 24, 100])
    @pytest.mark.parametrize("alpha", [0.05, 0.003, 1e-4])
    def test_power_equals_statsmodels(self, n: int, alpha: float) -> None:
        for effect in (-0.5, 0.0, 0.3, 1.0, 2.0):
            expected = TTestPower().power(effect, n, alpha, alternative="larger")
            assert statistics._power(effect, n, alpha) == pytest.approx(expected, abs=1e-3)

    def test_power_of_huge_effects(self) -> None:
        assert [statistics._power(effect, 6, 0.001) for effect in (-1e12, 1e12, inf)] == [0, 1, 1]

    @pytest.mark.parametrize(("n", "alpha", "power"), [(6, 0.05, 0.8), (6, 0.05 / 16, 0.8), (23, 0.01, 0.95)])
    def test_smallest_effect_has_this_power(self, n: int, alpha: float, power: float) -> None:
        effect = smallest_effect(n, 0.3, alpha=alpha, power=power) / 0.3
        critical = stats.t.isf(alpha / 2, n - 1)
        assert stats.nct.sf(critical, n - 1, effect * n**0.5) == pytest.approx(power, abs=1e-3)

    def test_smallest_effect_of_nothing(self) -> None:
        assert smallest_effect(1, nan, alpha=0.05) == inf
        assert smallest_effect(6, 0.0, alpha=0.05) == 0

    def test_sufficient_seeds_for_a_difference(self) -> None:
        n = sufficient_seeds(0.5, 1.0, margin=0.01, alpha=0.005)
        powers = [stats.nct.sf(stats.t.isf(0.0025, m - 1), m - 1, 0.5 * m**0.5) for m in (n - 1, n)]
        assert powers[0] < 0.8 <= powers[1]

    def test_sufficient_seeds_for_equivalence(self, rng: np.random.Generator) -> None:
        n = sufficient_seeds(0.0, 1.0, margin=0.6, alpha=0.05)
        d = rng.normal(size=(4000, n))
        half = stats.t.isf(0.05, n - 1) * d.std(1, ddof=1) / n**0.5
        assert np.mean(np.abs(d.mean(1)) + half < 0.6) == pytest.approx(0.8, abs=0.03)

    def test_sufficient_seeds_at_the_ends(self) -> None:
        assert sufficient_seeds(0.1, 1.0, margin=0.1, alpha=0.001) is None
        assert sufficient_seeds(9.0, 1.0, margin=0.1, alpha=0.05 / 16) == 10
        assert sufficient_seeds(0.0, 0.0, margin=0.1, alpha=0.05) == 6
        assert sufficient_seeds(9.0, 1.0, margin=0.1, alpha=0.05, more_than=12) == 13


class TestImprovement:
    def test_equals_mann_whitney_over_tasks(self, rng: np.random.Generator) -> None:
        tasks = [(rng.integers(0, 5, 7) / 4, rng.integers(0, 5, 5) / 4, True) for _ in range(3)]
        expected = [stats.mannwhitneyu(x, y).statistic / 35 for x, y, _ in tasks]
        assert probability_of_improvement(tasks) == pytest.approx(np.mean(expected))

    def test_direction_ties_and_divergence_by_hand(self) -> None:
        design, baseline = np.array([1.0, 2.0, nan]), np.array([2.0, 3.0])
        # lower is better: 1 wins twice, 2 ties and wins, a diverged run loses twice
        assert probability_of_improvement([(design, baseline, False)]) == pytest.approx(3.5 / 6)
        assert probability_of_improvement([(design, baseline, True)]) == pytest.approx(0.5 / 6)
        assert isnan(probability_of_improvement([]))


class TestSeedSchedule:
    def test_looks_share_alpha(self) -> None:
        schedule = SeedSchedule()
        assert schedule.level(0.05) * len(schedule.looks) == pytest.approx(0.05)

    def test_within_a_budget(self) -> None:
        assert SeedSchedule.within(16).looks == (6, 10, 16)
        assert SeedSchedule.within(20).looks == (6, 10, 16, 20)
        assert SeedSchedule.within(4).looks == (4,)

    @pytest.mark.parametrize("looks", [(), (0, 6), (6, 6), (10, 6)])
    def test_looks_that_do_not_grow(self, looks: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="growing numbers of seeds"):
            SeedSchedule(looks)
