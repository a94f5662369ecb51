"""What is concluded of each comparison, in one of five words that every report uses.

A verdict of the statistics holds for models as they were when training ended. It is replaced by "undertrained" where
the baseline is at chance or does worse than counting trigrams, or where a curve that matters was still improving: that
of the better design, or one of the two where neither is shown to be better.
"""

from __future__ import annotations

from typing import Literal

from querykey.stats.verdict import Comparison, Verdict
from querykey.study.result import Result

Conclusion = Literal["better", "worse", "no different", "cannot tell", "undertrained"]

COUNTED = "trigram"  # the n-gram model that a text model must beat
LEARNED = 0.05  # of the way from chance to the best score: a baseline below it has learned nothing


def conclude(result: Result, c: Comparison) -> Conclusion:
    """The word for a design on a task."""
    if not c.difference.n or c.verdict is Verdict.TOO_FEW:
        return "cannot tell"
    if c.task in unlearned(result) or c.task in below_counting(result) or improving(result, c):
        return "undertrained"
    if c.verdict is Verdict.UNDECIDED:
        return "cannot tell"
    return "no different" if c.within_margin or c.better is None else so_far(c)


def so_far(c: Comparison) -> Literal["better", "worse"]:
    """On which side of the baseline the design is."""
    return "better" if (c.difference.mean > 0) == c.higher_is_better else "worse"


def improving(result: Result, c: Comparison) -> list[str]:
    """The designs of a comparison whose curves were still improving and could turn it, the baseline first."""
    ahead = (c.baseline, c.design) if c.better is None else (c.better,)
    return [design for design in ahead if (c.task, design) in result.improving]


def below_counting(result: Result) -> dict[str, tuple[float, float]]:
    """The tasks on which the baseline does worse than counting trigrams, with both scores."""
    found = {}
    for c in result.comparisons:
        level = result.study.tasks[c.task].get("yardsticks", {}).get(COUNTED)
        if level is not None and c.difference.n and (c.baseline_mean < level) == c.higher_is_better:
            found[c.task] = (c.baseline_mean, level)
    return found


def unlearned(result: Result) -> dict[str, float]:
    """The tasks on which the baseline is at chance, with its mean: a comparison there says nothing."""
    found = {}
    for c in result.comparisons:
        chance, best = (result.study.tasks[c.task][name] for name in ("chance", "best"))
        if c.difference.n and (c.baseline_mean - chance) / (best - chance) < LEARNED:
            found[c.task] = c.baseline_mean
    return found
