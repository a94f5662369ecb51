"""Timing variants fairly on a noisy machine: in turn within each round, in one process, ratios within a round.

Python's `timeit` is underneath, which keeps the garbage collector away, with the clock of `torch.utils.benchmark`,
which waits for an accelerator. The `Timer` of that would warm up twice before every block, and so take three times as
long where one call fills a block; here a tenth of a block warms it up.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from timeit import Timer
from typing import NamedTuple

from torch.utils.benchmark import timer

Run = Callable[[], object]
Watch = Callable[[int], object]

WARM_UP = 2  # calls before the first round
LEAST_ROUNDS = 4  # fewer have no middle half


class Spread(NamedTuple):
    """A median with the interval that holds the middle half of the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleave(
    variants: Mapping[str, Run],
    rounds: int,
    block: float = 0.02,
    *,
    clock: Callable[[], float] = timer,
    watch: Watch | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of each variant, one number a round.

    In a round every variant runs once for about `block` seconds; the order is turned from round to round, so that
    none always follows the same other. Garbage is collected between rounds and not within.

    Args:
        variants: what to run, by name.
        rounds: how often each is timed.
        block: seconds that a variant runs in a round, or one call where a call takes longer.
        clock: gives the time in seconds, with an accelerator's work done.
        watch: called with the number of rounds that are done.

    Raises:
        ValueError: if there are fewer than four rounds.
    """
    if rounds < LEAST_ROUNDS:
        raise ValueError(f"rounds must be at least {LEAST_ROUNDS}, for a median and a middle half, not {rounds}")
    timers = {name: Timer(run, timer=clock) for name, run in variants.items()}
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
    """In which the variants run in this round: each round begins one later."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]


def spread(values: Sequence[float]) -> Spread:
    """Of one number a round."""
    low, _, high = quantiles(values, n=4)
    return Spread(median(values), low, high)


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> Spread:
    """Of one variant to another, round by round."""
    return spread([a / b for a, b in zip(times[name], times[to], strict=True)])


@contextmanager
def _frozen() -> Iterator[None]:
    """Within, garbage is looked for among what is new: among all modules' objects it would take a tenth of a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _repeats(one: Timer, block: float) -> int:
    """How many calls fill a block; this also warms up."""
    one.timeit(WARM_UP)
    return max(1, round(block / max(one.timeit(1), 1e-6)))
