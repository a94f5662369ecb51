"""What a reader has to know beside the tables of a study, and what to do next, in a sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from querykey.design import Design
from querykey.report.words import Words
from querykey.stats.comparison import Verdict
from querykey.stats.statistics import minimum_seeds
from querykey.study.conclusions import below_counting, counting_level, improving, unlearned
from querykey.study.config import Match
from querykey.study.matching import cost
from querykey.study.result import Result

LONGER = 3  # times as many steps are advised where training ended too early
NAMED = 6  # diverged cells that are named


def advice(result: Result, say: Words) -> list[str]:
    """What would settle what is open: the missing cells, longer training, more seeds."""
    found = []
    if result.missing:
        total = len(result.study.cells)
        found.append(say("advice-missing", done=total - result.missing, total=total))
    found += _on_training(result, say)
    needed = minimum_seeds(result.rule.alpha)
    if result.study.seeds < needed and any(c.verdict is Verdict.TOO_FEW for c in result.comparisons):
        found.append(say("advice-seeds", needed=needed))
    return found


def notes(result: Result, say: Words) -> list[str]:
    """What limits the comparisons."""
    about = (_on_diverged, _on_curves, _on_matching, _on_rates)
    return [note for notes_of in about for note in notes_of(result, say)]


def mismatch(result: Result, task: str, rule: Match) -> dict[str, float]:
    """By design, what a rule makes equal (see `matched`; of all blocks, attention and MLP) over the baseline's."""
    configs, length = result.configs(task), result.study.tasks[task]["length"]
    costs = {design: cost(config, Design.parse(design), rule, length) for design, config in configs.items()}
    base = costs.get(result.study.designs[0])
    return {design: own / base for design, own in costs.items()} if base else {}


def _on_training(result: Result, say: Words) -> Iterator[str]:
    """The tasks on which the baseline learned nothing or curves were still improving."""
    nothing = unlearned(result)
    for task, mean in nothing.items():
        chance, baseline = result.study.tasks[task]["chance"], result.study.designs[0]
        yield say("unlearned", task=task, baseline=baseline, mean=f"{mean:.3f}", chance=f"{chance:.3f}")
    below = below_counting(result)
    counted = [task for task in result.study.tasks if task not in nothing and any(task == one for one, _ in below)]
    for task in counted:
        means = {design: mean for (one, design), mean in below.items() if one == task}
        designs = say.join([f"{design} ({mean:.3f})" for design, mean in means.items()])
        yield say("below-counting", task=task, designs=designs, level=f"{counting_level(result, task):.3f}")
    early = [task for task in result.study.tasks if task not in nothing and _improving(result, task)]
    for task in early:
        yield say("improving", task=task, designs=say.join(_improving(result, task)))
    tasks = list(dict.fromkeys([*nothing, *counted, *early]))
    steps = [config.steps for task in tasks for config in result.configs(task).values()]
    if steps:
        yield say("advice-longer", tasks=say.join(tasks), steps=LONGER * max(steps), names=" ".join(tasks))


def _improving(result: Result, task: str) -> list[str]:
    """The designs whose curves were still improving and could turn a comparison."""
    found = {d for c in result.comparisons if c.task == task and c.difference.n for d in improving(result, c)}
    return [design for design in result.study.designs if design in found]


def _on_curves(result: Result, say: Words) -> Iterator[str]:
    """The tasks on which curves still improved, though no verdict hangs on it."""
    for task in result.study.tasks:
        designs = [design for design in result.study.designs if (task, design) in result.improving]
        if designs and task not in unlearned(result) and not _improving(result, task):
            yield say("still-improving", task=task, designs=say.join(designs))


def _on_diverged(result: Result, say: Words) -> Iterator[str]:
    rows = result.diverged[["design", "task", "seed"]].to_dict("records")
    cells = [say("cell", **row) for row in map(_named, rows)]
    if cells:
        named = cells if len(cells) <= NAMED else [*cells[: NAMED - 1], say("more", count=len(cells) - NAMED + 1)]
        yield say("diverged", cells=say("option.and").join(named))


def _named(row: dict[object, object]) -> dict[str, object]:
    return {str(name): value for name, value in row.items()}


def _on_matching(result: Result, say: Words) -> Iterator[str]:
    rule = cast(Match, result.study.match)
    if rule != "width":
        ratios = [ratio for task in result.study.tasks for ratio in mismatch(result, task, rule).values()]
        off = max((abs(ratio - 1) for ratio in ratios), default=0.0)
        yield say("matched", rule=say(f"match.{rule}"), off=f"{off:.1%}")


def _on_rates(result: Result, say: Words) -> Iterator[str]:
    """The learning rates of a task whose designs have different ones: they were chosen."""
    for task in result.study.tasks:
        rates = {design: config.lr for design, config in result.configs(task).items()}
        if len(set(rates.values())) > 1:
            yield say("rates", task=task, rates=", ".join(f"{design} {rate:g}" for design, rate in rates.items()))
