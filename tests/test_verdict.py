"""Verdicts on families of comparisons: the words, the correction, added seeds, and error rates by simulation."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from itertools import product
from math import isfinite, isnan, nan
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from querykey.stats.comparison import Arms, Comparison, Key, Rule, Verdict
from querykey.stats.statistics import SeedSchedule, holm
from querykey.stats.verdict import compare_family, improvement_over_tasks

BASELINE = "q,k,v"
NOISE = (0.03, -0.02, 0.011, -0.007, 0.019, -0.013, 0.005, 0.023, -0.029, 0.017)


def arms(gap: float, n: int = 6, *, scale: float = 1.0, higher_is_better: bool = True, margin: float = 0.01) -> Arms:
    """A design `gap` above a steady baseline, whose seeds differ by scale × NOISE."""
    baseline = {seed: 0.5 + NOISE[-1 - seed] / 7 for seed in range(n)}
    design = {seed: x + gap + scale * NOISE[seed] for seed, x in baseline.items()}
    return Arms(baseline, design, higher_is_better, margin)


def compare(*members: Arms, rule: Rule | None = None, schedule: SeedSchedule | None = None) -> list[Comparison]:
    family = {("cycle", f"design {i}"): member for i, member in enumerate(members)}
    return compare_family(family, BASELINE, np.random.default_rng(0), rule=rule, schedule=schedule)


def one(member: Arms, rule: Rule | None = None) -> Comparison:
    (comparison,) = compare(member, rule=rule)
    return comparison


class TestVerdict:
    @pytest.mark.parametrize(
        ("gap", "higher_is_better", "verdict", "better"),
        [
            (0.3, True, Verdict.DESIGN_BETTER, "design 0"),
            (-0.3, True, Verdict.BASELINE_BETTER, BASELINE),
            (0.3, False, Verdict.BASELINE_BETTER, BASELINE),
            (-0.3, False, Verdict.DESIGN_BETTER, "design 0"),
        ],
    )
    def test_names_the_better(self, gap: float, higher_is_better: bool, verdict: Verdict, better: str) -> None:
        comparison = one(arms(gap, higher_is_better=higher_is_better))
        assert (comparison.verdict, comparison.better) == (verdict, better)
        assert comparison.words == f"{better} is better, by more than the margin (0.01)"
        assert comparison.finding == ("better" if better == "design 0" else "worse")
        assert comparison.decided
        assert np.sign(comparison.difference.mean) == np.sign(gap)

    def test_no_difference_within_a_given_margin(self) -> None:
        comparison = one(arms(0.001, margin=0.1))
        assert comparison.verdict is Verdict.EQUIVALENT
        assert comparison.words == "no difference within the margin (0.1)"
        assert comparison.better is None

    def test_better_by_less_than_the_margin(self) -> None:
        comparison = one(arms(0.05, scale=0.1, margin=0.1))
        assert comparison.verdict is Verdict.DESIGN_BETTER
        assert comparison.words == "design 0 is better, by less than the margin (0.1)"
        assert comparison.finding == "no different"

    def test_better_by_an_amount_that_is_open(self) -> None:
        """The interval holds the margin: that there is a difference does not show that it matters."""
        comparison = one(arms(-0.05, margin=0.04))
        assert comparison.verdict is Verdict.BASELINE_BETTER
        assert comparison.difference.low < -0.04 < comparison.difference.high < 0
        assert comparison.words == f"{BASELINE} is better, perhaps by less than the margin (0.04)"
        assert comparison.finding == "cannot tell"
        assert one(arms(-0.1, margin=0.04)).finding == "worse"

    def test_beyond_is_corrected_over_the_family(self) -> None:
        member = arms(-0.08, margin=0.04)
        alone, (first, *_) = one(member), compare(member, *[arms(0.0, margin=0.04)] * 8)
        assert (alone.finding, first.verdict, first.finding) == ("worse", Verdict.BASELINE_BETTER, "cannot tell")
        assert first.p_beyond_holm == pytest.approx(9 * alone.p_beyond_holm)

    def test_cannot_tell_and_how_many_would(self) -> None:
        comparison = one(arms(0.01))
        assert comparison.verdict is Verdict.UNDECIDED
        assert comparison.sufficient_seeds is not None
        assert comparison.sufficient_seeds > 6
        assert comparison.words == f"cannot tell with 6 seeds (about {comparison.sufficient_seeds} would do)"
        hopeless = one(arms(-np.mean(NOISE[:6]).item(), margin=1e-4))
        assert hopeless.words == "cannot tell with 6 seeds (more than 1000 would be needed)"

    def test_five_seeds_are_too_few_however_clear(self) -> None:
        comparison = one(arms(0.3, n=5))
        assert comparison.p_holm < 1e-4
        assert comparison.words == "too few seeds for a verdict (6 would do)"
        assert one(arms(0.3, n=6)).decided
        assert one(arms(0.3, n=6), Rule(alpha=0.03)).words == "too few seeds for a verdict (7 would do)"

    def test_all_at_the_ceiling(self) -> None:
        ones = dict.fromkeys(range(6), 1.0)
        assert one(Arms(ones, ones, True, 0.01)).words == "no difference within the margin (0.01)"

    def test_one_seed_against_the_trend_needs_enough_pairs(self) -> None:
        """With 9 comparisons, 8 pairs cannot reach the level by sign flips: a single exception forbids the claim."""
        clear = arms(0.1, n=8, scale=0.5)
        except_one = clear._replace(design=clear.design | {3: clear.baseline[3] - 0.001})
        members = [except_one, *[arms(0.0, n=8)] * 8]
        assert compare(*members)[0].p_holm < 0.05
        assert compare(*members)[0].verdict is Verdict.UNDECIDED
        assert compare(clear, *members[1:])[0].verdict is Verdict.DESIGN_BETTER
        assert compare(except_one)[0].verdict is Verdict.DESIGN_BETTER  # alone it needs 6 pairs, and has 8

    def test_more_seeds_are_asked_for_than_there_are(self) -> None:
        """Ten pairs could do for 16 comparisons, and to the t test the gap is clear, but one seed stands against it."""
        clear = arms(0.1, n=10, scale=0.5)
        except_one = clear._replace(design=clear.design | {3: clear.baseline[3] - 0.001})
        comparison = compare(except_one, *[arms(0.0, n=10)] * 15)[0]
        assert comparison.p_holm < 0.001
        assert comparison.words == "cannot tell with 10 seeds (about 11 would do)"

    def test_one_seed_outside_the_margin_needs_enough_pairs(self) -> None:
        outside = arms(0.0, n=6, margin=0.0295)
        within, among = one(outside), compare(outside, *[arms(0.4)] * 3)[0]
        assert within.verdict is Verdict.EQUIVALENT  # alone one seed may lie outside
        assert among.p_within_holm < 0.05
        assert among.verdict is Verdict.UNDECIDED
        assert max(NOISE[:6]) > 0.0295

    def test_confidence_and_power_are_the_rule_s(self) -> None:
        usual, other = one(arms(0.1, n=8)), one(arms(0.1, n=8), Rule(confidence=0.8, power=0.99))
        assert usual.difference.low < other.difference.low < other.difference.high < usual.difference.high
        assert other.smallest_effect > usual.smallest_effect

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.floats(0.1, 10), min_size=6, max_size=6))
    @pytest.mark.usefixtures("unchecked")
    def test_symmetric_noise_of_any_shape_misleads_in_at_most_two_of_64_sign_patterns(self, sizes: list[float]) -> None:
        zeros = dict.fromkeys(range(6), 0.0)
        misled = 0
        for signs in product((-1, 1), repeat=6):
            design = dict(enumerate(np.multiply(signs, sizes).tolist()))
            misled += one(Arms(zeros, design, True, 0.01)).better is not None
        assert misled <= 2


class TestFamily:
    def test_holm_over_all_that_was_declared(self) -> None:
        members = [arms(0.05), arms(0.03), arms(0.01)]
        expected = holm(np.array([one(member).difference.p_t for member in members]))
        assert [c.p_holm for c in compare(*members)] == pytest.approx(expected)

    def test_missing_members_count(self) -> None:
        member, missing = arms(0.036), Arms({}, {}, True, 0.01)
        alone, *_ = compare(member)
        first, *others = compare(member, *[missing] * 15)
        assert first.p_holm == pytest.approx(16 * alone.p_holm)
        assert first.level == pytest.approx(0.05 / 16)
        assert first.smallest_effect > alone.smallest_effect
        assert (alone.verdict, first.verdict) == (Verdict.DESIGN_BETTER, Verdict.UNDECIDED)
        assert {c.words for c in others} == {"too few seeds for a verdict (6 would do)"}

    def test_equivalence_is_corrected_over_the_family_too(self) -> None:
        member = arms(0.0, margin=0.03)
        alone, (first, *_) = one(member), compare(member, *[arms(0.4)] * 8)
        assert (alone.verdict, first.verdict) == (Verdict.EQUIVALENT, Verdict.UNDECIDED)
        assert first.p_within_holm == pytest.approx(9 * alone.p_within_holm)

    def test_diverged_cells_are_left_out_and_counted(self) -> None:
        member = arms(0.3, n=8)
        member = member._replace(design=member.design | {1: nan}, baseline=member.baseline | {5: float("inf")})
        comparison = one(member)
        assert (comparison.difference.n, comparison.diverged) == (6, 2)
        kept = [seed for seed in range(8) if seed not in (1, 5)]
        assert comparison.baseline_mean == pytest.approx(np.mean([member.baseline[s] for s in kept]))

    def test_seeds_are_paired_whatever_their_order(self) -> None:
        member = arms(0.05, n=7)
        shuffled = member._replace(design=dict(reversed(member.design.items())), baseline=member.baseline | {99: 0.1})
        assert replace(one(shuffled)) == one(member)

    def test_a_wrong_margin_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"positive and finite, not -0\.1"):
            one(arms(0.1, margin=-0.1))

    @pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"confidence": 1.0}, {"power": nan}])
    def test_wrong_rules_are_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must"):
            Rule(**wrong)

    def test_nobody(self) -> None:
        assert compare() == []


class TestPrinting:
    def test_row_is_flat_and_complete(self) -> None:
        comparison = one(arms(0.3))
        row = comparison.row()
        assert all(isinstance(value, str | float | int) for value in row.values())
        assert (row["task"], row["design"], row["verdict"]) == ("cycle", "design 0", "design better")
        assert row["difference_low"] == comparison.difference.low
        assert (row["margin"], row["within_p_t"]) == (comparison.margin, comparison.within.p_t)
        assert row["words"] == comparison.words

    def test_improvement_over_tasks(self) -> None:
        low, high = {0: 0.1, 1: 0.2}, {0: 0.5, 1: 0.6}
        family: dict[Key, Arms] = {
            ("cycle", "a"): Arms(low, high, True, 0.01),
            ("text", "a"): Arms(low, high, False, 0.01),
            ("sort", "a"): Arms(low, high, True, 0.01),
            ("cycle", "b"): Arms(low, {}, True, 0.01),
        }
        improvement = improvement_over_tasks(family)
        assert improvement["a"] == pytest.approx(2 / 3)
        assert isnan(improvement["b"])


class TestAddedSeeds:
    schedule = SeedSchedule((6, 8, 10))

    def test_each_look_tests_at_its_share_of_alpha(self) -> None:
        member = arms(0.022)
        p = one(member).p_holm
        assert 0.05 / 3 < p < 0.05
        assert one(member).decided
        assert not compare(member, schedule=self.schedule)[0].decided

    def test_a_decision_is_final(self) -> None:
        clear = arms(0.3, n=10)
        turned = clear._replace(design=clear.design | {seed: -9.0 for seed in range(6, 10)})
        decided, still_open = compare(turned, arms(0.0, n=10), schedule=self.schedule)
        assert decided.verdict is Verdict.DESIGN_BETTER
        assert decided.difference.n == 6
        assert still_open.difference.n == 10

    def test_what_was_decided_may_stop_early(self) -> None:
        """The one that was decided at 6 seeds has no more cells, and the other goes on at a milder level of Holm."""
        comparisons = compare(arms(0.3, n=6), arms(0.022, n=8), schedule=self.schedule)
        assert [c.difference.n for c in comparisons] == [6, 8]
        assert all(c.decided for c in comparisons)
        alone = one(arms(0.022, n=8))
        assert comparisons[1].p_holm == pytest.approx(alone.difference.p_t)  # not doubled: the other came first

    def test_no_decision_between_looks(self) -> None:
        clear = arms(0.3, n=9)
        without = clear._replace(design={seed: x for seed, x in clear.design.items() if seed != 2})
        between, also = compare(without, clear, schedule=self.schedule)
        assert (between.verdict, also.verdict) == (Verdict.UNDECIDED, Verdict.UNDECIDED)  # seed 2 is still to come
        assert between.difference.n == 8
        assert compare(arms(0.3, n=5), schedule=self.schedule)[0].verdict is Verdict.TOO_FEW
        assert compare(arms(0.3, n=6), schedule=self.schedule)[0].decided

    def test_a_diverged_cell_does_not_hold_up_a_look(self) -> None:
        clear = arms(0.3, n=8)
        member = clear._replace(design=clear.design | {2: nan})
        comparison = compare(member, schedule=SeedSchedule((8,)))[0]
        assert (comparison.difference.n, comparison.diverged, comparison.decided) == (7, 1, True)

    def test_equivalence_decided_early_keeps_its_place(self) -> None:
        same, other = arms(0.0, n=6, scale=0.1, margin=0.1), arms(0.02, n=8, margin=1e-4)
        first, second = compare(same, other, schedule=self.schedule)
        assert (first.verdict, first.difference.n) == (Verdict.EQUIVALENT, 6)
        assert second.p_holm == pytest.approx(2 * one(other).difference.p_t)  # for "better" the first still counts
        assert one(other).difference.p_t < 0.5

    def test_what_is_better_is_in_the_way_of_equivalence(self) -> None:
        open_ = arms(0.0, n=8, margin=0.03)
        after_better = compare(arms(0.3, n=6), open_, schedule=self.schedule)[1]
        after_equal = compare(arms(0.0, n=6, scale=0.1, margin=0.1), open_, schedule=self.schedule)[1]
        alone = one(open_).p_within_holm
        assert after_better.p_within_holm == pytest.approx(2 * alone)
        assert after_equal.p_within_holm == pytest.approx(alone)


@pytest.fixture(scope="module")
def simulations() -> ModuleType:
    path = Path(__file__).parents[1] / "studies" / "simulations.py"
    spec = importlib.util.spec_from_file_location("simulations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulations"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def not_above(share: float, bound: float, draws: int) -> bool:
    """Whether draws with this share of hits are compatible with a true share of at most `bound`."""
    return bool(binomtest(round(share * draws), draws, bound, alternative="greater").pvalue > 0.01)


@pytest.mark.usefixtures("unchecked")
class TestSimulations:
    """Small ones; the large ones and their record are studies/simulations.py and studies/results."""

    NOISES = ("normal", "skewed: exponential below 1", "coin: 0.5 or 1, ± 0.01")

    @pytest.mark.parametrize("noise", NOISES)
    @pytest.mark.parametrize("n", [6, 8])
    def test_intervals_cover(self, simulations: ModuleType, noise: str, n: int) -> None:
        rng = np.random.default_rng(11)
        for gap in simulations.GAPS[:2]:
            held = simulations.coverage(simulations.NOISES[noise], n, gap, 400, rng)
            assert not_above(1 - held, 0.06, 400)
            assert held < 1

    @pytest.mark.parametrize("noise", NOISES)
    def test_no_gap_among_ten_designs(self, simulations: ModuleType, noise: str) -> None:
        rng = np.random.default_rng(12)
        for n in (6, 10):
            families = (simulations.draw_family(simulations.NOISES[noise], n, 9, rng) for _ in range(60))
            assert not_above(simulations.false_better(families, rng)["verdict"], 0.05, 60)

    def test_without_correction_it_would_err(self, simulations: ModuleType) -> None:
        """The simulation can fail: it sees the errors of somebody who corrects nothing."""
        rng = np.random.default_rng(13)
        families = (simulations.draw_family(simulations.NOISES["normal"], 8, 9, rng) for _ in range(60))
        called = [any(one(member).better is not None for member in family.values()) for family in families]
        assert not not_above(float(np.mean(called)), 0.05, 60)

    def test_gaps_are_found(self, simulations: ModuleType) -> None:
        rng = np.random.default_rng(14)
        noise = simulations.NOISES["normal"]
        families = (simulations.draw_family(noise, 10, 9, rng, gaps=[3 * noise.sd * 2**0.5]) for _ in range(20))
        assert simulations.gaps_found(families, rng)["verdict"] > 0.95

    def test_a_gap_of_the_margin_is_not_called_equal(self, simulations: ModuleType) -> None:
        rng = np.random.default_rng(15)
        noise = simulations.NOISES["normal"]
        gap = 2 * noise.sd
        for m in (1, 9):
            families = (simulations.draw_family(noise, 8, m, rng, gaps=[gap], margin=gap) for _ in range(100))
            assert not_above(simulations.called_equal(families, rng), 0.05, 100)

    @pytest.mark.parametrize("noise", NOISES)
    def test_all_statements_together(self, simulations: ModuleType, noise: str) -> None:
        rng = np.random.default_rng(17)
        families = list(simulations.mixed_families(simulations.NOISES[noise], 8, 9, 60, rng))
        shares = simulations.false_statements(families, rng)
        for kind in ("better", "within", "beyond"):
            assert not_above(shares[f"false {kind}"], 0.05, 60)
        assert not_above(shares["any of them"], 0.15, 60)
        assert shares["any of them"] >= max(shares[f"false {kind}"] for kind in ("better", "within", "beyond"))

    @pytest.mark.parametrize("noise", NOISES)
    def test_added_seeds_keep_the_error(self, simulations: ModuleType, noise: str) -> None:
        rng = np.random.default_rng(16)
        families = (simulations.draw_family(simulations.NOISES[noise], 10, 9, rng) for _ in range(60))
        share = simulations.false_better(families, rng, SeedSchedule((6, 8, 10)))["verdict"]
        assert not_above(share, 0.05, 60)

    def test_the_record_is_that_of_the_script(self, simulations: ModuleType) -> None:
        """The recorded file has all the tables and noises of the script, each number a share or a count of seeds."""
        lines = (Path(simulations.__file__).parent / "results" / "simulations.csv").read_text("utf-8").splitlines()
        assert lines[0] == ",".join(simulations.Share._fields)
        text = "\n".join(lines)
        assert all(noise in text for noise in simulations.NOISES)
        assert all(isfinite(float(line.split(",")[-2])) for line in lines[1:])
