"""The page of a study: one file that needs nothing beside itself.

The template says what stands where; here is all that it is given: rows of words from `tables`, drawings by `figures`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from querykey.design import Design
from querykey.report import figures
from querykey.report import page as pages
from querykey.study import tables
from querykey.study.answer import NUMBERED, headline, in_words, on_designs
from querykey.study.maps import SHOWN, head_maps
from querykey.study.result import Result
from querykey.tasks import TASKS

DRAWN = 12  # designs of a figure
DOTS = 60  # seeds of which each is drawn, and points of a curve


def as_html(result: Result) -> str:
    """One page that needs nothing beside itself: the answer, then figures, tables, costs, and how it was measured."""
    environment = pages.environment("study")
    environment.filters["marked"] = _marking(result.study.designs)
    return environment.get_template("report.html.j2").render(
        study=result.study,
        result=result,
        headline=headline(result.study, result.comparisons, result.missing),
        sentences=on_designs(result.study, result.comparisons, result.improvement),
        notes=tables.notes(result),
        claims=tables.claim_rows(result),
        overview=tables.overview(result) if len(result.study.tasks) > NUMBERED else [],
        designs=[
            (name, figures.marker(n) if n < DRAWN else "", in_words(Design.parse(name)))
            for n, name in enumerate(result.study.designs)
        ],
        tasks=[_task(result, task) for task in result.study.tasks],
        cost_title=tables.cost_title(result),
        costs=tables.cost_rows(result),
        cost_figures=_cost_figures(result),
        matching=_matching(result),
        drawn=DRAWN,
        settings=_settings(result),
        origin=_origin(result),
        comparisons=len(result.comparisons),
        rule=result.rule,
        percent=f"{100 * result.rule.confidence:g} %",
    )


def _task(result: Result, task: str) -> dict[str, Any]:
    """All that the page says of a task."""
    return {
        "name": task,
        "designs": result.study.designs_of(task),
        "about": _about(result.study.tasks[task].get("task", task)),
        "title": tables.task_title(result, task),
        "rows": tables.task_rows(result, task),
        "choices": tables.choice_rows(result, task),
        "differences": _differences(result, task),
        "curves": _curves(result, task),
        "settled": _settled(result, task),
        "levels": _levels(result, task),
        "maps": _maps(result, task),
    }


def _about(task: str) -> str:
    """What a task asks for: the first line of its own description."""
    maker = TASKS.get(task)
    described = inspect.getdoc(getattr(maker, "__self__", maker)) if maker else None
    return (described or "").partition("\n")[0].replace("`", "")


def _differences(result: Result, task: str) -> str | None:
    """The paired differences to the baseline with their intervals, each seed's, and the margins."""
    compared = [c for c in result.comparisons if c.task == task][: DRAWN - 1]
    if not compared:
        return None
    baseline, metric = result.study.designs[0], result.study.tasks[task]["metric"]
    base = result.scores(task, baseline)
    estimates = []
    for c in compared:
        scores = result.scores(task, c.design)
        pairs = [scores[seed] - base[seed] for seed in sorted(scores.keys() & base.keys())][:DOTS]
        d = c.difference
        number = result.study.designs.index(c.design)
        estimates.append(figures.Estimate(c.design, number, d.mean, d.t_low, d.t_high, [*filter(math.isfinite, pairs)]))
    return figures.intervals(
        f"Difference to {baseline} on {task}",
        estimates,
        x_label=f"{metric}, difference to {baseline} (better →)",
        margins=[c.equivalence.margin for c in compared],
        lower_is_better=not result.higher_is_better(task),
    )


def _curves(result: Result, task: str) -> str | None:
    """Validation metric against steps."""
    curves = result.curves
    points = curves[(curves["task"] == task) & (curves["status"] == "finished")]
    if points.empty:
        return None
    facts = result.study.tasks[task]
    return figures.curves(
        f"Learning curves on {task}",
        _lines(result, points, "step", "validation"),
        x_label="training steps",
        y_label=f"validation, {facts['metric']}",
        levels={"chance": facts["chance"], "best": facts["best"]},
    )


def _levels(result: Result, task: str) -> str | None:
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
        f"Score by difficulty on {task}",
        _lines(result, pd.DataFrame(rows, columns=["design", "level", "score"]), "level", "score"),
        x_label="difficulty",
        y_label=f"test, {result.study.tasks[task]['metric']}",
    )


def _lines(result: Result, points: pd.DataFrame, x: str, y: str) -> list[figures.Curve]:
    """For each design the mean over seeds, with a band from the lowest to the highest."""
    found = []
    grouped = points.groupby(["design", x])[y].agg(["mean", "min", "max"])
    for number, design in enumerate(result.study.designs[:DRAWN]):
        if design in grouped.index:
            line = grouped.loc[design]
            line = line.iloc[np.unique(np.linspace(0, len(line) - 1, DOTS).round().astype(int))]
            columns = (line[name].tolist() for name in ("mean", "min", "max"))
            found.append(figures.Curve(design, number, [*map(float, line.index)], *columns))
    return found


def _settled(result: Result, task: str) -> list[tuple[str, str]]:
    """By design, the step from which on most runs stay within the margin of their last value."""
    mine = result.convergence[result.convergence["task"] == task]
    steps = dict(zip(mine["design"], mine["converged_at"], strict=True))
    there = {design: steps[design] for design in result.study.designs[:DRAWN] if design in steps}
    return [(design, "only at the end" if math.isnan(step) else f"{step:g}") for design, step in there.items()]


def _maps(result: Result, task: str) -> dict[str, Any] | None:
    """The attention maps of one head, all designs on one scale."""
    found = head_maps(result, task, result.study.designs_of(task)[:DRAWN])
    if found is None:
        return None
    limits = (0.0, max(float(weights.max()) for weights in found.maps.values()))
    drawn = [
        (
            design,
            figures.heatmap(
                f"Attention weights of {design} on {task}",
                weights,
                limits=limits,
                x_label="key",
                y_label="query",
                x_names=found.names,
                y_names=found.names,
            ),
        )
        for design, weights in found.maps.items()
    ]
    return {
        **found._asdict(),
        "drawn": drawn,
        "scale": figures.scale("attention weight", limits=limits),
        "shown": SHOWN,
    }


def _cost_figures(result: Result) -> list[str]:
    rows = tables.cost_rows(result)[:DRAWN]
    kinds = {"parameters": "parameters", "flops": "FLOPs", "cache": "cache bytes per token"}
    return [
        figures.bars(
            f"{kind} against {rows[0].design}",
            [row.design for row in rows],
            [getattr(row, name).ratio for row in rows],
            x_label=f"{kind}, × {rows[0].design}",
        )
        for name, kind in kinds.items()
        if len(rows) > 1 and all(math.isfinite(getattr(row, name).ratio) for row in rows)
    ]


def _matching(result: Result) -> dict[str, dict[str, str]]:
    """By design, by task: parameters and FLOPs of all blocks against the baseline's."""
    found: dict[str, dict[str, str]] = {}
    for task in result.study.tasks:
        for design, (parameters, flops) in tables.mismatch(result, task).items():
            found.setdefault(design, {})[task] = f"{parameters:.2f}× / {flops:.2f}×"
    return found


def _settings(result: Result) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of the tasks that have a cell, and for each setting its values on each of them."""
    found = {task: [asdict(one) for one in result.configs(task).values()] for task in result.study.tasks}
    found = {task: settings for task, settings in found.items() if settings}
    names = next(iter(found.values()))[0] if found else {}
    said = {name: [_each_word(one[name] for one in settings) for settings in found.values()] for name in names}
    return [*found], [*said.items()]


def _each_word(values: Iterable[Any]) -> str:
    """One value, or several where designs that are matched have different ones."""
    words = ("default" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x) for x in values)
    return ", ".join(dict.fromkeys(words))


def _origin(result: Result) -> list[tuple[str, str]]:
    """Where the numbers come from: each value that any cell has, most often there is one."""
    if result.records.empty:
        return []
    cells = result.cells
    origin = [name for name in map(str, cells) if name.startswith("origin.")]
    found = [(name.removeprefix("origin."), _values(cells[name])) for name in origin]
    times = cells["finished_at"]
    return [
        *((name.replace(".", ": ").replace("_", " "), values) for name, values in found if values),
        ("cells finished", f"{times.min()} to {times.max()}"),
        ("time in all", f"{cells['seconds'].sum():,.0f} s, {cells['seconds'].mean():.1f} s a cell"),
    ]


def _values(column: pd.Series) -> str:
    values = column.dropna().astype(str).unique().tolist()
    return ", ".join(values[:5]) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _marking(designs: Sequence[str]) -> Callable[[str], Markup]:
    """A filter that sets names of designs, and options of the command line, apart from the words around them."""
    names = sorted((str(escape(name)) for name in designs), key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, names), r"--\w+ \d+"]))
    return lambda text: Markup(pattern.sub(r"<code>\g<0></code>", str(escape(text))))
