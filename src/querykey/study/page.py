"""The page of a study: one file that needs nothing beside itself.

The template says what stands where; this module makes what it is given: sentences, tables and charts.
"""

from __future__ import annotations

import inspect
import math
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from querykey.design import Design
from querykey.report import figures, heatmaps
from querykey.report import page as pages
from querykey.report.numbers import duration
from querykey.report.words import Words
from querykey.study import notes, tables
from querykey.study.answer import asked, headline, in_words, on_designs
from querykey.study.conclusions import judgements
from querykey.study.maps import SHOWN, head_maps
from querykey.study.result import Result
from querykey.tasks import TASKS

DRAWN = 12  # designs of a chart
DOTS = 60  # seeds of which each is drawn, and points of a curve


def as_html(result: Result, say: Words) -> str:
    """The answer with its tiles first, then charts, tables, costs, and how it was measured."""
    environment = pages.environment("study")
    environment.filters["marked"] = _marking(result.study.designs)
    looks = figures.palette(result.study.designs)
    drawn = {design: figures.marker(look) for design, look in looks.items()}
    return environment.get_template("report.html.j2").render(
        say=say,
        study=result.study,
        result=result,
        question=asked(result, say) or result.study.name,
        headline=headline(result, say),
        sentences=on_designs(result, say),
        advice=notes.advice(result, say),
        notes=notes.notes(result, say),
        tiles=tables.tiles(result),
        claims=[
            (one, tables.claim_verdict(one, say), tables.claim_table(result, one, say)) for one in judgements(result)
        ],
        markers=drawn,
        designs={name: in_words(Design.parse(name), say) for name in result.study.designs},
        tasks=[_task(result, task, looks, say) for task in result.study.tasks],
        shares=_shares(result),
        cost_table=tables.cost_table(result, say),
        cost_charts=_cost_charts(result, looks, say),
        matching=tables.matching_table(result, say),
        configs=tables.config_table(result, say),
        provenance=_provenance(result, say),
        folder=shlex.quote(str(result.folder)),
        drawn=DRAWN,
        percent=tables.confidence(result),
    )


Looks = dict[str, figures.Look]


def _task(result: Result, task: str, looks: Looks, say: Words) -> dict[str, Any]:
    """All that the page says of a task."""
    shown = result.study.designs_of(task)[:DRAWN]
    return {
        "name": task,
        "designs": shown,
        "about": _about(result.study.tasks[task].get("task", task), say),
        "title": tables.task_title(result, task, say),
        "table": tables.task_table(result, task, say),
        "choices": tables.choice_table(result, task, say),
        "differences": _differences(result, task, looks, say),
        "curves": _curves(result, task, looks, say),
        "settled": _settled(result, task, say),
        "levels": _levels(result, task, looks, say),
        "maps": _maps(result, task, say),
    }


def _about(task: str, say: Words) -> str:
    """What a task asks for: its own words in the language, else the first line of its description."""
    if f"task.{task}" in say and say.language != "en":
        return say(f"task.{task}")
    maker = TASKS.get(task)
    described = inspect.getdoc(getattr(maker, "__self__", maker)) if maker else None
    return (described or "").partition("\n")[0].replace("`", "")


def _differences(result: Result, task: str, looks: Looks, say: Words) -> str | None:
    """The paired differences to the baseline with their intervals, each seed's, and the margins."""
    compared = [c for c in result.comparisons if c.task == task][: DRAWN - 1]
    if not compared:
        return None
    baseline, metric = result.study.designs[0], say(f"metric.{result.study.tasks[task]['metric']}")
    base = result.scores(task, baseline)
    estimates = []
    for c in compared:
        scores, d = result.scores(task, c.design), c.difference
        pairs = [scores[seed] - base[seed] for seed in sorted(scores.keys() & base.keys())][:DOTS]
        values = [*filter(math.isfinite, pairs)]
        estimates.append(figures.Estimate(c.design, looks[c.design], d.mean, d.low, d.high, values, c.margin))
    return figures.intervals(
        say("chart.differences", baseline=baseline, task=task),
        estimates,
        x_label=say("axis.difference", metric=metric, baseline=baseline),
        lower_is_better=not result.higher_is_better(task),
    )


def _curves(result: Result, task: str, looks: Looks, say: Words) -> str | None:
    """Validation metric against steps."""
    curves = result.curves
    points = curves[(curves["task"] == task) & (curves["status"] == "finished")]
    if points.empty:
        return None
    facts = result.study.tasks[task]
    return figures.curves(
        say("chart.curves", task=task),
        _lines(result, points, "step", "validation", looks),
        x_label=say("axis.steps"),
        y_label=say("axis.validation", metric=say(f"metric.{facts['metric']}")),
        levels={say("chance"): facts["chance"], say("best"): facts["best"], **facts.get("yardsticks", {})},
    )


def _levels(result: Result, task: str, looks: Looks, say: Words) -> str | None:
    """Test score against difficulty, where the task has levels."""
    mine = result.records[result.records["task"] == task]
    rows = [
        (design, int(name.removeprefix("test@")), score)
        for design, metrics in zip(mine["design"], mine["metrics"], strict=True)
        for name, score in metrics.items()
        if name.startswith("test@")
    ]
    if len({level for _, level, _ in rows}) < 2:
        return None
    return figures.curves(
        say("chart.levels", task=task),
        _lines(result, pd.DataFrame(rows, columns=["design", "level", "score"]), "level", "score", looks),
        x_label=say("axis.level"),
        y_label=say("axis.test", metric=say(f"metric.{result.study.tasks[task]['metric']}")),
    )


def _lines(result: Result, points: pd.DataFrame, x: str, y: str, looks: Looks) -> list[figures.Curve]:
    """For each design the mean over seeds, with a band from the lowest to the highest."""
    found = []
    grouped = points.groupby(["design", x])[y].agg(["mean", "min", "max"])
    for design in result.study.designs[:DRAWN]:
        if design in grouped.index:
            line = grouped.loc[design]
            line = line.iloc[np.unique(np.linspace(0, len(line) - 1, DOTS).round().astype(int))]
            columns = (line[name].tolist() for name in ("mean", "min", "max"))
            found.append(figures.Curve(design, looks[design], [*map(float, line.index)], *columns))
    return found


def _settled(result: Result, task: str, say: Words) -> list[tuple[str, str]]:
    """By design, the step from which on most runs stay near their last value."""
    mine = result.convergence[result.convergence["task"] == task]
    steps = dict(zip(mine["design"], mine["converged_at"], strict=True))
    there = {design: steps[design] for design in result.study.designs[:DRAWN] if design in steps}
    return [(design, say("at-the-end") if math.isnan(step) else f"{step:g}") for design, step in there.items()]


def _maps(result: Result, task: str, say: Words) -> dict[str, Any] | None:
    """The attention weights of one head, all designs on one scale."""
    found = head_maps(result, task, result.study.designs_of(task)[:DRAWN])
    if found is None:
        return None
    limits = (0.0, max(float(weights.max()) for weights in found.maps.values()))
    key, query = say("axis.key"), say("axis.query")
    titles = {design: say("chart.map", design=design, task=task) for design in found.maps}
    drawn = [
        (
            design,
            heatmaps.heatmap(titles[design], weights, limits=limits, x_label=key, y_label=query, names=found.names),
        )
        for design, weights in found.maps.items()
    ]
    return {
        **found._asdict(),
        "drawn": drawn,
        "scale": heatmaps.scale(say("axis.weight"), limits=limits),
        "shown": SHOWN,
        "percent": f"{100 * found.distance:.0f}",
    }


def _shares(result: Result) -> dict[str, list[str]]:
    """By design, its cache, parameters and FLOPs against the baseline, as the tiles have them."""
    found = {row["design"]: [row[f"{name}_ratio"] for name in tables.COSTS] for row in result.largest_costs}
    return {
        design: [f"{x:.2f}×" for x in ratios] for design, ratios in found.items() if not any(map(math.isnan, ratios))
    }


def _cost_charts(result: Result, looks: Looks, say: Words) -> list[str]:
    rows, baseline = result.largest_costs[:DRAWN], result.study.designs[0]
    if len(rows) < 2:
        return []
    return [
        figures.bars(
            say("chart.cost", cost=say(f"cost.{name}"), baseline=baseline),
            [(row["design"], looks[row["design"]], row[f"{name}_ratio"]) for row in rows],
            x_label=say("axis.cost", cost=say(f"cost.{name}"), baseline=baseline),
        )
        for name in tables.COSTS
        if all(math.isfinite(row[f"{name}_ratio"]) for row in rows)
    ]


def _provenance(result: Result, say: Words) -> list[tuple[str, str]]:
    """Where the numbers come from: each value that any cell has, most often there is one."""
    if result.records.empty:
        return []
    cells, prefix = result.cells, "provenance."
    found = [(name.removeprefix(prefix), _values(cells[name])) for name in map(str, cells) if name.startswith(prefix)]
    times, seconds = cells["finished_at"], cells["seconds"]
    return [
        *((name.replace(".", ": ").replace("_", " "), values) for name, values in found if values),
        (say("finished"), f"{times.min()} – {times.max()}"),
        (say("time"), say("time-each", total=duration(seconds.sum()), each=f"{seconds.mean():.1f} s")),
    ]


def _values(column: pd.Series) -> str:
    values = column.dropna().astype(str).unique().tolist()
    return ", ".join(values[:5]) + (f" + {len(values) - 5}" if len(values) > 5 else "")


def _marking(designs: Sequence[str]) -> Callable[[str], Markup]:
    """A filter that sets names of designs, and options of the command line, apart from the words around them."""
    names = sorted((str(escape(name)) for name in designs), key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, names), r"--tasks (?:[\w-]+ )+--steps \d+", r"--\w+(?: \d+)?"]))
    return lambda text: Markup(pattern.sub(r"<code>\g<0></code>", str(escape(text))))
