"""Timing variants fairly on a noisy machine: in turn within each round, in one process, ratios within a round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple

WARM_UP = 3


class Ratio(NamedTuple):
    """A median ratio with the interval that holds the middle half of the rounds' ratios."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, block: float = 0.02
) -> dict[str, list[float]]:
    """Seconds per call of each variant, one number a round.

    In a round every variant runs once for about `block` seconds; the order is turned from round to round, so that
    none always follows the same other. Garbage is collected between blocks and not within.
    """
    repeats = {}
    for name, run in variants.items():
        for _ in range(WARM_UP):
            run()
        repeats[name] = max(1, round(block / max(_time(run, 1), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append(_time(variants[name], repeats[name]))
    return found


def ratio(times: Mapping[str, list[float]], name: str, to: str) -> Ratio:
    """Of one variant to another, round by round."""
    ratios = [a / b for a, b in zip(times[name], times[to], strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return Ratio(median(ratios), low, high)


def _time(run: Callable[[], object], repeats: int) -> float:
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - started) / repeats
    finally:
        gc.enable()
