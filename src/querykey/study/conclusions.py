"""What is concluded of each comparison, in one of five words that every report uses.

A verdict of the statistics holds for models as they were when training ended. It is replaced by "undertrained" where

- the baseline is at chance, or one of the two designs does worse than counting trigrams;
- neither is shown to be better, and a curve of the two was still improving: they may part later;
- one is shown to be better, and the other was catching up.
"""

from __future__ import annotations

from math import inf
from typing import Literal

from querykey.stats.comparison import Comparison, Verdict
from querykey.study.claims import Judgement, judge
from querykey.study.result import Result

Conclusion = Literal["better", "worse", "no different", "cannot tell", "undertrained"]

COUNTED = "trigram"  # the n-gram model that a text model must beat
LEARNED = 0.05  # of the way from chance to the best score: a baseline below it has learned nothing


def conclude(result: Result, c: Comparison) -> Conclusion:
    """The word for a design on a task."""
    if not c.difference.n or c.verdict is Verdict.TOO_FEW:
        return "cannot tell"
    if undertrained(result, c):
        return "undertrained"
    if c.verdict is Verdict.UNDECIDED:
        return "cannot tell"
    return "no different" if c.within_margin or c.better is None else so_far(c)


def judgements(result: Result) -> list[Judgement]:
    """What was found of each claim that the plan states."""
    if not result.claims:
        return []
    comparisons = [*result.comparisons, *result.contrasts]
    return judge(result.claims, comparisons, result.changed, lambda c: undertrained(result, c))


def undertrained(result: Result, c: Comparison) -> bool:
    """Whether training was too short for this comparison."""
    cells = _cells(result, c)
    counted = below_counting(result)
    return any(task in unlearned(result) or (task, design) in counted for task, design in cells) or bool(
        improving(result, c)
    )


def so_far(c: Comparison) -> Literal["better", "worse"]:
    """On which side of the baseline the design is."""
    return "better" if (c.difference.mean > 0) == c.higher_is_better else "worse"


def improving(result: Result, c: Comparison) -> list[str]:
    """The designs whose curves could still turn a comparison: both where they are alike, or the one that catches up."""
    if c.better is not None and c.baseline:
        return [c.design if c.better == c.baseline else c.baseline] if result.catching_up(c) else []
    if c.verdict in (Verdict.DESIGN_BETTER, Verdict.BASELINE_BETTER):  # a contrast
        return []
    return list(dict.fromkeys(design for task, design in _cells(result, c) if (task, design) in result.improving))


def below_counting(result: Result) -> dict[tuple[str, str], float]:
    """The mean scores of the (task, design) that do worse than counting trigrams."""
    means = {(c.task, c.baseline): c.baseline_mean for c in result.comparisons if c.difference.n}
    means |= {(c.task, c.design): c.design_mean for c in result.comparisons if c.difference.n}
    return {(task, design): mean for (task, design), mean in means.items() if mean > counting_level(result, task)}


def counting_level(result: Result, task: str) -> float:
    """Bits per byte of counting trigrams; infinite for a task without."""
    return float(result.study.tasks[task].get("yardsticks", {}).get(COUNTED, inf))


def unlearned(result: Result) -> dict[str, float]:
    """The tasks on which the baseline is at chance, with its mean: a comparison there says nothing."""
    found = {}
    for c in result.comparisons:
        chance, best = (result.study.tasks[c.task][name] for name in ("chance", "best"))
        if c.difference.n and (c.baseline_mean - chance) / (best - chance) < LEARNED:
            found[c.task] = c.baseline_mean
    return found


def _cells(result: Result, c: Comparison) -> list[tuple[str, str]]:
    """The (task, design) that a comparison or a contrast is made of, the baseline's first."""
    if c.task in result.study.tasks and c.baseline:
        return [(c.task, c.baseline), (c.task, c.design)]
    for one in (prediction for claim in result.claims for prediction in claim.predictions if prediction.contrast):
        for task in one.tasks:
            if one.key(task) == (c.task, c.design):
                tasks = [task, one.than] if one.than else [task]
                return [(there, d) for there in tasks for d in (one.against or result.study.designs[0], one.design)]
    return []
