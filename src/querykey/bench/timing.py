"""Timing of variants on a noisy machine: they take turns within each round, in one process; ratios are of one round.

Python's `timeit` runs them, without garbage collection, with the clock of `torch.utils.benchmark`, which waits for an
accelerator. The `Timer` of `torch.utils.benchmark` warms up twice before every block, which triples the time where one
call fills a block; here a tenth of a block warms up.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from timeit import Timer
from typing import NamedTuple

from torch.utils.benchmark import timer

from querykey.bench.config import LEAST_ROUNDS

Run = Callable[[], object]
Watch = Callable[[int], object]

WARM_UP = 2  # calls before the first round
BLOCK = 0.02  # seconds that a variant runs in a round


class Spread(NamedTuple):
    """A median with the interval that holds the middle half of the rounds."""

    median: float
    low: float
    high: float

    def noise(self, rounds: int) -> float:
        """Half the width of a 95 % interval for the median of that many rounds.

        1.96 × 1.253 σ/√rounds with σ = (high − low) / 1.349, as for normal noise.
        """
        return 1.82 * (self.high - self.low) / math.sqrt(rounds)

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    variants: Mapping[str, Run],
    rounds: int,
    block: float | None = None,
    *,
    clock: Callable[[], float] = timer,
    watch: Watch | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of each variant, one number a round.

    In a round every variant runs once for about `block` seconds. Each round starts with the next variant, so that none
    always follows the same other. Garbage is collected between rounds only.

    Args:
        variants: what to run, by name.
        rounds: how often each is timed.
        block: seconds that a variant runs in a round, or one call where a call takes longer; `BLOCK` if None.
        clock: gives the time in seconds, with an accelerator's work done.
        watch: called with the number of finished rounds.

    Raises:
        ValueError: if there are fewer than four rounds.
    """
    if rounds < LEAST_ROUNDS:
        raise ValueError(f"rounds must be at least {LEAST_ROUNDS}, for a median and a middle half, not {rounds}")
    timers = {name: Timer(run, timer=clock) for name, run in variants.items()}
    block = BLOCK if block is None else block
    repeats = {name: _repeats(one, block) for name, one in timers.items()}
    found: dict[str, list[float]] = {name: [] for name in variants}
    with _frozen():
        for number in range(rounds):
            gc.collect()
            for name in order(list(variants), number):
                timers[name].timeit(repeats[name] // 10)
                found[name].append(timers[name].timeit(repeats[name]) / repeats[name])
            if watch is not None:
                watch(number + 1)
    return found


def order(names: Sequence[str], number: int) -> list[str]:
    """The order of the variants in a round: each round starts with the next one."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def spread(values: Sequence[float]) -> Spread:
    """Median and middle half of one number a round."""
    low, _, high = quantiles(values, n=4)
    return Spread(median(values), low, high)


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> Spread:
    """The ratio of one variant's time to another's, round by round."""
    return spread([a / b for a, b in zip(times[name], times[to], strict=True)])


@contextmanager
def _frozen() -> Iterator[None]:
    """Within this block the garbage collector skips older objects: all modules' objects would take it 0.1 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _repeats(one: Timer, block: float) -> int:
    """Number of calls that fill a block; this also warms up."""
    one.timeit(WARM_UP)
    return max(1, round(block / max(one.timeit(1), 1e-6)))
