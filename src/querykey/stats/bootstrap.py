"""A bootstrap of the verdict: how often other seeds, drawn from those at hand, give another finding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from querykey.stats.comparison import Arms, Comparison, Key, Rule
from querykey.stats.statistics import Seeds
from querykey.stats.verdict import compare_family

RESAMPLES = 500


def changed_findings(
    family: Mapping[Key, Arms],
    comparisons: Iterable[Comparison],
    rule: Rule,
    finding: Callable[[Comparison], str],
    resamples: int = RESAMPLES,
) -> dict[Key, float]:
    """For each comparison, the share of resamples of the seeds that give another finding.

    Seeds are drawn with replacement, the same for all comparisons that have the same seeds, because they are paired
    across these; each resample goes through the tests of the whole family. It measures the noise of seeds alone, and is
    an estimate from few.
    """
    rng = np.random.default_rng(0)
    given = {(c.task, c.design): finding(c) for c in comparisons}
    baseline = next((c.baseline for c in comparisons), "")
    most = max((len(arms.paired().design) for arms in family.values()), default=0)
    if not most:
        return {}
    changed = dict.fromkeys(given, 0)
    for _ in range(resamples):
        places = rng.random(most)
        again = compare_family({key: _drawn(arms, places) for key, arms in family.items()}, baseline, rng, rule=rule)
        for c in again:
            changed[c.task, c.design] += finding(c) != given[c.task, c.design]
    return {key: count / resamples for key, count in changed.items()}


def _drawn(arms: Arms, places: Seeds) -> Arms:
    """The arms with other seeds: those at the first `places`, which lie in [0, 1), of the seeds that both have."""
    paired = arms.paired()
    there = [*paired.design]
    drawn = [there[int(place * len(there))] for place in places[: len(there)]]
    baseline, design = (dict(enumerate(arm[seed] for seed in drawn)) for arm in (paired.baseline, paired.design))
    return arms._replace(baseline=baseline, design=design)
