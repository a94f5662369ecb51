"""Interleaving and its arithmetic, on a clock that only the variants move."""

import gc
from statistics import median

import pytest
import torch

from querykey.bench.timing import Spread, interleave, order, ratio, spread


class Clock:
    """Stands still but for what the variants take, which may differ from call to call."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def variant(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds(len(self.calls)) if callable(seconds) else seconds

        return run


def test_times_are_seconds_per_call():
    clock = Clock()
    variants = {"short": clock.variant("short", 0.001), "long": clock.variant("long", 0.5)}
    times = interleave(variants, 5, block=0.02, clock=clock)
    assert times["short"] == pytest.approx([0.001] * 5)
    assert times["long"] == pytest.approx([0.5] * 5)


def test_a_block_is_filled_with_short_calls_and_a_long_one_runs_once_a_round():
    clock = Clock()
    variants = {"short": clock.variant("short", 0.001), "long": clock.variant("long", 0.5)}
    interleave(variants, 6, block=0.02, clock=clock)
    before = 3  # two to warm up, and one to see how many fill a block
    assert clock.calls.count("long") == before + 6
    assert clock.calls.count("short") == before + 6 * (20 + 2)  # a tenth of a block warms up each


def test_each_round_begins_one_later():
    assert [order("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    clock = Clock()
    interleave({name: clock.variant(name, 0.5) for name in "abc"}, 4, clock=clock)
    assert "".join(clock.calls) == "aaabbbccc" + "abc" + "bca" + "cab" + "abc"


def test_ratios_are_taken_within_rounds():
    """A machine that becomes slower from round to round: the ratio of medians would say something else."""
    times = {"a": [1.0, 2.0, 4.0, 8.0, 16.0], "b": [2.0, 4.0, 8.0, 16.0, 64.0]}
    found = ratio(times, "b", to="a")
    assert found == Spread(2.0, 2.0, 3.0)  # ratios 2, 2, 2, 2, 4, whose upper quartile lies between 2 and 4
    assert ratio(times, "a", to="a") == Spread(1.0, 1.0, 1.0)


def test_a_spread_holds_the_middle_half():
    values = [float(value) for value in range(1, 16)]
    found = spread(values[::-1])
    assert found == Spread(8.0, 4.0, 12.0)
    assert found.median == median(values)
    assert str(Spread(1.0, 0.5, 2.25)) == "1.000 [0.500, 2.250]"


def test_the_noise_is_that_of_the_median():
    """Against the 95 % interval of medians of many normal samples."""
    generator = torch.Generator().manual_seed(0)
    rounds = 25
    samples = torch.randn(4000, rounds, generator=generator)
    width = samples.median(1).values.quantile(torch.tensor([0.025, 0.975])).abs().mean().item()
    found = median(spread(sample).noise(rounds) for sample in samples[:1000].tolist())
    assert found == pytest.approx(width, rel=0.1)


def test_who_watches_hears_of_each_round():
    clock, heard = Clock(), []
    interleave({"a": clock.variant("a", 0.5)}, 5, clock=clock, watch=heard.append)
    assert heard == [1, 2, 3, 4, 5]


def test_no_garbage_is_collected_while_a_variant_runs():
    clock, enabled = Clock(), []

    def run():
        enabled.append(gc.isenabled())
        clock.now += 0.5

    interleave({"a": run}, 4, clock=clock)
    assert enabled
    assert not any(enabled)
    assert gc.isenabled()


def test_too_few_rounds_have_no_middle_half():
    with pytest.raises(ValueError, match="rounds must be at least 4, for a median and a middle half, not 3"):
        interleave({"a": lambda: None}, 3)
