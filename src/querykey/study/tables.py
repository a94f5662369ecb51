"""The tables of a study as `Table` values, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from math import isfinite, isnan
from typing import Any, NamedTuple

import numpy as np

from querykey.design import Design
from querykey.report.numbers import MISSING, amount, mean_and_sd, number, percent, probability, ratio, signed
from querykey.report.table import Cell, Column, Style, Table
from querykey.report.words import Words
from querykey.stats.bootstrap import RESAMPLES
from querykey.stats.comparison import Comparison, Verdict
from querykey.stats.statistics import mean_sd, minimum_seeds, unseen_rate
from querykey.study.ceilings import ceiling
from querykey.study.claims import Found, Judgement
from querykey.study.conclusions import Conclusion, conclude, so_far
from querykey.study.notes import mismatch
from querykey.study.result import Result
from querykey.tasks import Ceiling, Relation

STYLES: dict[Conclusion, Style] = {"better": "good", "worse": "bad", "cannot tell": "muted", "undertrained": "muted"}
COSTS = ("cache_bytes", "parameters", "flops")


class Tile(NamedTuple):
    """A design on a task at a glance: the conclusion ("" for the baseline), the score, the difference and its unit."""

    conclusion: Conclusion | str
    score: str
    difference: str


class Choice(NamedTuple):
    """How often the highest weight of a design's one head lies right, and how often it can at most."""

    design: str
    right: tuple[str, str]
    ceiling: Ceiling


def tiles(result: Result) -> dict[str, dict[str, Tile]]:
    """By design, by task: what is concluded. A design that is not tried on a task lacks it."""
    compared = {(c.design, c.task): c for c in result.comparisons}
    baseline = result.study.designs[0]
    found: dict[str, dict[str, Tile]] = {baseline: {}}
    for task in result.study.tasks:
        found[baseline][task] = Tile("", _scored(result, task, baseline)[0], "")
        for design in result.study.designs_of(task)[1:]:
            c = compared[design, task]
            difference = signed(c.difference.mean)
            found.setdefault(design, {})[task] = Tile(conclude(result, c), number(c.design_mean, 3), difference)
    return {design: found[design] for design in result.study.designs if design in found}


def overview(result: Result, say: Words) -> Table:
    """Designs × tasks in words, and what the attention of each design costs."""
    costs = {row["design"]: row for row in result.largest_costs}
    columns = [Column(say("design"), "left", wrap=True)]
    columns += [Column(task, "left") for task in result.study.tasks]
    columns += [Column(say(f"short.{name}"), rank=n) for n, name in enumerate(COSTS)] * bool(costs)
    rows: list[list[Cell | str]] = []
    for design, mine in tiles(result).items():
        cells = [_tile_cell(mine.get(task), say) for task in result.study.tasks]
        shares = [ratio(costs[design][f"{name}_ratio"]) if design in costs else "" for name in COSTS]
        rows.append([Cell(design, style="code"), *cells, *shares * bool(costs)])
    return Table(columns, rows)


def task_title(result: Result, task: str, say: Words) -> str:
    """`cycle: accuracy, higher is better, 6 seeds (chance 0.125, best 1, margin 0.01)`."""
    facts = result.study.tasks[task]
    levels = [say("chance-level", value=f"{facts['chance']:.3g}"), say("best-level", value=f"{facts['best']:.3g}")]
    levels += [say("margin-level", value=f"{result.margins[task]:.3g}")] * (len(result.study.designs) > 1)
    better = say("higher" if result.higher_is_better(task) else "lower")
    metric = say(f"metric.{facts['metric']}")
    return say(
        "task-title",
        task=task,
        metric=metric,
        better=better,
        seeds=result.study.seeds_of(task),
        levels=say("comma").join(levels),
    )


def task_table(result: Result, task: str, say: Words) -> Table:
    """One row per design, the baseline first."""
    columns = (
        Column(say("design"), "left", wrap=True),
        Column(say("verdict"), "left", wrap=True),
        Column(say("mean"), detail="± sd"),
        Column(say("difference"), detail=say("interval", percent=confidence(result))),
        Column("p (Holm)", detail=say("p-flip")),
    )
    baseline = result.study.designs[0]
    first: list[Cell | str] = [
        Cell(baseline, style="code"),
        say("the-baseline"),
        Cell(*_scored(result, task, baseline)),
        "",
        "",
    ]
    compared = [_compared(result, c, say) for c in result.comparisons if c.task == task]
    return Table(columns, [first, *compared], caption=task_title(result, task, say))


def choice_rows(result: Result, task: str) -> list[Choice]:
    """One row per design, for a fixed relation and models of one layer and one head; none else."""
    if result.study.tasks[task].get("task", task) != Relation.name:
        return []
    relation = Relation(**result.options(task))
    rows = []
    for design, config in result.configs(task).items():
        bound = ceiling(relation, Design.parse(design), config)
        if bound is not None:
            shares = np.array([*result.scores(task, design, "argmax").values()])
            rows.append(Choice(design, mean_and_sd(*mean_sd(shares)), bound))
    return rows


def choice_table(result: Result, task: str, say: Words) -> Table | None:
    """How often the highest attention weight lies right, beside what is possible; None where this is not known."""
    rows = choice_rows(result, task)
    columns = (
        Column(say("design"), "left", wrap=True),
        Column(say("mean"), detail="± sd"),
        Column(say("at-most")),
        Column(say("because"), "left", wrap=True),
    )
    cells: list[list[Cell | str]] = [
        [Cell(row.design, style="code"), Cell(*row.right), str(row.ceiling.fraction), row.ceiling.reason]
        for row in rows
    ]
    return Table(columns, cells, caption=say("choices", task=task)) if rows else None


def claim_table(result: Result, judgement: Judgement, say: Words) -> Table:
    """What was found of each prediction of a claim."""
    columns = (
        Column(say("task"), "left"),
        Column(say("design"), "left", wrap=True),
        Column(say("predicted"), "left"),
        Column(say("found"), "left"),
        Column(say("difference"), detail=say("interval", percent=confidence(result))),
        Column(say("changed")),
    )
    return Table(columns, [_evidence(found, say) for found in judgement.found])


def claim_verdict(judgement: Judgement, say: Words) -> str:
    """What a claim comes to; in English with the tasks that it rests on."""
    return judgement.verdict if say.language == "en" else say(f"claim.{judgement.kind}")


def confidence(result: Result) -> str:
    """`95 %`: the confidence of the intervals that are printed."""
    return f"{100 * result.rule.confidence:g} %"


def cost_title(result: Result, say: Words) -> str | None:
    """Of which model the costs are; None as long as there is no cell."""
    rows = result.largest_costs
    if not rows:
        return None
    task = rows[0]["task"]
    config = next(iter(result.configs(task).values()))
    size = say("of-size", size=config.head_dim) if config.head_dim else ""
    sizes = {"layers": config.layers, "dim": config.dim, "heads": config.heads, "size": size}
    return say("cost-title", task=task, length=result.study.tasks[task]["length"], **sizes)


def cost_table(result: Result, say: Words) -> Table | None:
    """Parameters, FLOPs and cache of each design's attention, in the largest model of the study."""
    title = cost_title(result, say)
    names = ("parameters", "flops", "cache_bytes")
    columns = [Column(say("design"), "left", wrap=True), *(Column(say(f"cost.{name}")) for name in names)]
    rows = [
        [Cell(row["design"], style="code")]
        + [Cell(amount(row[name]), ratio(row[f"{name}_ratio"]), value=float(row[name])) for name in names]
        for row in result.largest_costs
    ]
    return Table(columns, rows, caption=title) if title else None


def matching_table(result: Result, say: Words) -> Table | None:
    """Parameters and FLOPs of all blocks against the baseline's; None for one design."""
    found = {task: _ratios(result, task) for task in result.study.tasks}
    designs = [design for design in result.study.designs if any(design in mine for mine in found.values())]
    if len(designs) < 2:
        return None
    rows = [[Cell(design, style="code")] + [mine.get(design, MISSING) for mine in found.values()] for design in designs]
    rule = say(f"match.{result.study.match}")
    caption = say("matching", rule=rule, baseline=result.study.designs[0])
    return Table([Column(say("design"), "left", wrap=True), *map(Column, found)], rows, caption=caption)


def _ratios(result: Result, task: str) -> dict[str, str]:
    parameters, flops = (mismatch(result, task, rule) for rule in ("parameters", "flops"))
    return {design: f"{parameters[design]:.2f}× / {flops[design]:.2f}×" for design in parameters}


def config_table(result: Result, say: Words) -> Table | None:
    """The sizes of the models and their training, by task; None as long as there is no cell."""
    found = {task: [asdict(one) for one in result.configs(task).values()] for task in result.study.tasks}
    found = {task: configs for task, configs in found.items() if configs}
    if not found:
        return None
    names = next(iter(found.values()))[0]
    rows = [
        [name.replace("_", " "), *(_each_word(one[name] for one in configs) for configs in found.values())]
        for name in names
    ]
    return Table([Column(say("option"), "left"), *map(Column, found)], rows, caption=say("configs"))


def _scored(result: Result, task: str, design: str) -> tuple[str, str]:
    scores = np.array([*result.scores(task, design).values()], dtype=float)
    return mean_and_sd(*mean_sd(scores[np.isfinite(scores)]))


def _tile_cell(tile: Tile | None, say: Words) -> Cell:
    if tile is None:
        return Cell("")
    if not tile.conclusion:
        return Cell(tile.score, style="muted")
    return Cell(say(f"word.{tile.conclusion}"), tile.difference, _style(tile.conclusion))


def _style(word: str) -> Style:
    return next((style for conclusion, style in STYLES.items() if conclusion == word), "")


def _compared(result: Result, c: Comparison, say: Words) -> list[Cell]:
    d = c.difference
    word = conclude(result, c)
    verdict = Cell(say(f"word.{word}"), _reason(c, word, say), _style(word))
    return [
        Cell(c.design, style="code"),
        verdict,
        Cell(*mean_and_sd(c.design_mean, c.design_sd)),
        _difference(c),
        Cell(probability(c.p_holm), probability(d.p_flip), value=c.p_holm) if d.n > 1 else Cell(MISSING),
    ]


def _difference(c: Comparison) -> Cell:
    d = c.difference
    interval = f"[{signed(d.low)}, {signed(d.high)}]" if isfinite(d.low) else ""
    return Cell(signed(d.mean), interval, value=None if isnan(d.mean) else d.mean)


def _reason(c: Comparison, word: Conclusion, say: Words) -> str:
    """What stands beside a conclusion."""
    if not c.difference.n:
        return say("reason.no-pair")
    if c.verdict is Verdict.TOO_FEW:
        return say("reason.few", needed=minimum_seeds(c.rule.alpha))
    if word == "undertrained":
        return say(f"reason.{so_far(c)}-so-far") if c.better and not c.within_margin else ""
    if word == "cannot tell":
        enough = c.sufficient_seeds
        return say("reason.seeds", seeds=enough) if enough else say("reason.many-seeds")
    if c.better is None or c.beyond_margin:
        return ""
    return say(f"reason.{so_far(c)}-within") if c.within_margin else say("reason.perhaps-within")


def _evidence(found: Found, say: Words) -> list[Cell | str]:
    style: Style = "" if found.finding in ("cannot tell", "not tested") else "good" if found.met else "bad"
    c = found.comparison
    return [
        found.task,
        Cell(found.design, style="code"),
        say(f"word.{found.expected}"),
        Cell(say(f"word.{found.finding}"), style=style or "muted"),
        _difference(c) if c else MISSING,
        _changed(found, say),
    ]


def _changed(found: Found, say: Words) -> str | Cell:
    """The bootstrap of a verdict and, where a design has one score at all seeds, the rate of failure that may hide."""
    if isnan(found.changed) or found.comparison is None:
        return MISSING
    c = found.comparison
    share = percent(found.changed, 1) if found.changed else f"< {percent(1 / RESAMPLES, 1)}"
    if c.design_sd and c.baseline_sd:
        return share
    n = c.difference.n
    return Cell(share, say("unseen", count=n, rate=percent(unseen_rate(n))))


def _each_word(values: Iterable[Any]) -> str:
    """One value, or several where designs that are matched have different ones."""
    words: Iterator[str] = ("default" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x) for x in values)
    return ", ".join(dict.fromkeys(words))
