"""What a study found: its cells and its comparisons, a pure function of the records.

result = read("runs/why")
result.cells      one row per cell      result.summary    one row per comparison
result.curves     one row per point     result.costs      one row per task and design
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from querykey.design import Design
from querykey.stats.bootstrap import changed_findings
from querykey.stats.comparison import Arms, Comparison, Rule
from querykey.stats.convergence import catching_up, converged_at, still_improving
from querykey.stats.statistics import SeedSchedule
from querykey.stats.verdict import compare_family, improvement_over_tasks
from querykey.study.claims import Claim, contrasts, finding
from querykey.study.config import Config
from querykey.study.records import Records, Study, weights_path
from querykey.tasks import MARGINS

_IDENTITY = ("key", "task", "design", "seed", "status")
_POINTS = ("step", "loss", "validation")


@dataclass(frozen=True)
class Result:
    """A study and the records of its cells, as many as there are.

    `records` has one row per cell, with the columns of the database; see `cells` for the same laid out flat. `folder`
    is where they lie.
    """

    study: Study
    records: pd.DataFrame
    folder: Path
    rule: Rule = field(default_factory=Rule)

    @property
    def missing(self) -> int:
        """How many cells are still to be trained."""
        return len(self.study.cells) - len(self.records)

    @property
    def diverged(self) -> pd.DataFrame:
        """The records of the cells whose training gave no finite loss."""
        return self.records[self.records["status"] != "finished"]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, each number in a column of its own.

        The columns are key, task, design, seed and status, then ``metrics.*``, seconds and finished_at, ``config.*``
        and ``provenance.*``; what one cell has and another has not is empty there.
        """
        columns: dict[str, Any] = {name: self.records[name].tolist() for name in _IDENTITY}
        columns |= _flat_columns("metrics", self.records["metrics"])
        columns |= {name: self.records[name].tolist() for name in ("seconds", "finished_at")}
        columns |= _flat_columns("config", self.records["config"], without=_IDENTITY)
        return pd.DataFrame(columns | _flat_columns("provenance", self.records["provenance"]))

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per point of each cell's curve: task, design, seed, step, training loss (nats), validation metric."""
        curves = self.records["curve"].tolist()
        lengths = [len(curve.get("step", ())) for curve in curves]
        cells = self.records[["task", "design", "seed", "status"]].loc[np.repeat(self.records.index, lengths)]
        points = {name: [x for curve in curves for x in curve.get(name, ())] for name in _POINTS}
        return cells.reset_index(drop=True).assign(**points)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Each design against the baseline on each task, corrected over all that the study declared."""
        baseline = self.study.designs[0]
        # Drawn from only where there are too many pairs to try all signs; the same records give the same numbers.
        schedule = SeedSchedule(tuple(self.study.looks)) if self.study.looks else None
        return compare_family(self._family, baseline, np.random.default_rng(0), rule=self.rule, schedule=schedule)

    @cached_property
    def claims(self) -> list[Claim]:
        """The claims that the plan states."""
        return [Claim.read(stored["name"], stored) for stored in self.study.claims]

    @cached_property
    def contrasts(self) -> list[Comparison]:
        """The comparisons that the claims need beside those with the baseline, a family of their own."""
        return compare_family(self._contrasts, "", np.random.default_rng(0), rule=self.rule)

    @cached_property
    def changed(self) -> dict[tuple[str, str], float]:
        """By task and design, the share of resamples of the seeds that give another finding.

        Takes seconds where there are many comparisons.
        """
        own = changed_findings(self._family, self.comparisons, self.rule, finding)
        return own | changed_findings(self._contrasts, self.contrasts, self.rule, finding)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per comparison: means, paired difference with interval, p values, and the verdict in words."""
        return pd.DataFrame([comparison.row() for comparison in self.comparisons])

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What each design's attention costs in each task's model: all its layers, one forward pass at its length.

        Columns: ``task``, ``design``, ``parameters``, ``flops``, ``cache_bytes`` per token in float32, and the ratio of
        each to the baseline, which is NaN until the baseline has a cell.
        """
        rows = []
        for (task, design), config in self._configs.items():
            layout, length = config.layout(Design.parse(design)), self.study.tasks[task]["length"]
            numbers = (layout.parameters, layout.flops(length), layout.cache_bytes())
            rows.append((task, design, *(config.layers * number for number in numbers)))
        names = ["parameters", "flops", "cache_bytes"]
        frame = pd.DataFrame(rows, columns=["task", "design", *names])
        baseline = frame[frame["design"] == self.study.designs[0]].set_index("task")
        ratios = {f"{name}_ratio": frame[name] / frame["task"].map(baseline[name]) for name in names}
        return frame.assign(**ratios)

    @property
    def largest_costs(self) -> list[dict[str, Any]]:
        """The rows of `costs` for one task: of those with the most designs, the one with the most attention parameters.

        Of equals it is the one with the most FLOPs.
        """
        designs = self.costs.groupby("task")["design"].transform("size") if len(self.costs) else ()
        costs = self.costs.assign(designs=designs).sort_values(["designs", "parameters", "flops"], kind="stable")
        task = costs["task"].iloc[-1] if len(costs) else None
        rows = self.costs.to_dict("records")
        return [{str(name): value for name, value in row.items()} for row in rows if row["task"] == task]

    @cached_property
    def convergence(self) -> pd.DataFrame:
        """Whether training had ended when it was stopped, per task and design, over the cells that finished.

        Columns: ``task``, ``design``, ``converged_at``, the median over cells of the step from which on validation
        stays within the margin of its last value (NaN where most get there with their last point), and ``improving``,
        the share of cells that improved by more than the margin over the second half. A cell that ends within the
        margin of the best possible score has nothing left to improve.
        """
        rows = []
        for (task, design), curves in self._curves.items():
            how = (self.higher_is_better(task), self.margins[task])
            cells = [
                (converged_at(one, *how) or np.inf, still_improving(one, *how) and not self._at_best(task, one))
                for one in curves.values()
            ]
            rows.append((task, design, np.median(cells, axis=0)[0], np.mean(cells, axis=0)[1]))
        frame = pd.DataFrame(rows, columns=["task", "design", "converged_at", "improving"])
        return frame.replace({"converged_at": {np.inf: np.nan}})

    @cached_property
    def improving(self) -> set[tuple[str, str]]:
        """The (task, design) of which most cells were still improving when training ended."""
        frame = self.convergence[self.convergence["improving"] > 0.5]
        return set(zip(frame["task"], frame["design"], strict=True))

    def catching_up(self, c: Comparison) -> bool:
        """Whether the design that is behind in a comparison was catching up with the other for most seeds."""
        if c.better is None:
            return False
        ahead, behind = (self._curves.get((c.task, design), {}) for design in (c.better, _other(c)))
        how = (self.higher_is_better(c.task), self.margins[c.task])
        found = [catching_up(ahead[seed], behind[seed], *how) for seed in ahead.keys() & behind.keys()]
        return bool(found) and bool(np.mean(found) > 0.5)

    @cached_property
    def margins(self) -> dict[str, float]:
        """By task, the difference that does not matter, as declared; older records without one have the metric's."""
        return {task: facts["margin"] or MARGINS[facts["metric"]] for task, facts in self.study.tasks.items()}

    @cached_property
    def improvement(self) -> dict[str, float]:
        """By design, the chance that a run of it beats one of the baseline on a task drawn at random."""
        return improvement_over_tasks(self._family)

    def options(self, task: str) -> dict[str, Any]:
        """What the task was made with, but for places on a disk; {} as long as there is no cell."""
        options = (config["options"] for name, config in self._columns("task", "config") if name == task)
        return dict(next(options, {}))

    def configs(self, task: str) -> dict[str, Config]:
        """How the models of each design that has a cell of the task were made and trained, the baseline first."""
        return {design: config for (name, design), config in self._configs.items() if name == task}

    def scores(self, task: str, design: str, metric: str = "test") -> dict[int, float]:
        """By seed, a metric of a design on a task, by default the test score; NaN where a cell has none."""
        found = self._metrics.get((task, design), {})
        return {seed: float(metrics.get(metric, np.nan)) for seed, metrics in found.items()}

    def higher_is_better(self, task: str) -> bool:
        """Whether the task's metric is an accuracy rather than a loss."""
        return bool(self.study.tasks[task]["metric"] == "accuracy")

    def weights(self, task: str, design: str) -> Path:
        """Where the trained weights of the first seed are kept, if they are."""
        keys = (c.key for c in self.study.cells if c.task == task and c.design == design and c.seed == 0)
        return weights_path(self.folder, next(keys, "none"))

    @cached_property
    def _family(self) -> dict[tuple[str, str], Arms]:
        """All that the study declared."""
        return {
            (task, design): self._arms(task, design)
            for task in self.study.tasks
            for design in self.study.designs_of(task)[1:]
        }

    def _at_best(self, task: str, curve: Mapping[str, list[float]]) -> bool:
        return bool(abs(curve["validation"][-1] - self.study.tasks[task]["best"]) <= self.margins[task])

    @cached_property
    def _contrasts(self) -> dict[tuple[str, str], Arms]:
        return contrasts(self.claims, self.study.designs[0], self.scores, self.higher_is_better, self.margins)

    @cached_property
    def _curves(self) -> dict[tuple[str, str], dict[int, dict[str, list[float]]]]:
        """By task and design, the curve of each seed that finished."""
        found: dict[tuple[str, str], dict[int, dict[str, list[float]]]] = {}
        for task, design, seed, status, curve in self._columns("task", "design", "seed", "status", "curve"):
            if status == "finished":
                found.setdefault((task, design), {})[int(seed)] = curve
        return found

    @cached_property
    def _metrics(self) -> dict[tuple[str, str], dict[int, dict[str, float]]]:
        found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for task, design, seed, metrics in self._columns("task", "design", "seed", "metrics"):
            found.setdefault((task, design), {})[int(seed)] = metrics
        return found

    @cached_property
    def _configs(self) -> dict[tuple[str, str], Config]:
        """The config of each task and design of which there is a cell, in the study's order."""
        names = {one.name for one in fields(Config)}
        stored = {
            (task, design): {name: value for name, value in config.items() if name in names}
            for task, design, config in self._columns("task", "design", "config")
        }
        order = [(task, design) for task in self.study.tasks for design in self.study.designs]
        return {pair: Config(**stored[pair]) for pair in order if pair in stored}

    def _columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.records[name].tolist() for name in names), strict=True)

    def _arms(self, task: str, design: str) -> Arms:
        baseline = self.scores(task, self.study.designs[0])
        return Arms(baseline, self.scores(task, design), self.higher_is_better(task), self.margins[task])


def read(folder: str | Path, study: Study | None = None) -> Result:
    """The result of a study, by default of the one that was run last under the folder.

    Raises:
        RecordsError: if there is none.
    """
    with Records(folder) as records:
        study = study or records.last_study()
        there = records.finished()
        declared = [cell for cell in study.cells if cell.key in there]
        # a plan may have one cell under two names
        cells = records.cells([cell.key for cell in declared]).assign(task=[cell.task for cell in declared])
        return Result(study, cells, Path(folder))


def _other(c: Comparison) -> str:
    """The design of a comparison that is not the better one."""
    return c.baseline if c.better == c.design else c.design


def _flat_columns(
    prefix: str, mappings: Iterable[Mapping[str, Any]], without: Iterable[str] = ()
) -> dict[str, list[Any] | pd.Series]:
    """A column for each entry that any of the mappings has, named by its path; in order of first appearance."""
    rows = [_flat(mapping, f"{prefix}.") for mapping in mappings]
    names = dict.fromkeys(name for row in rows for name in row)
    left_out = {f"{prefix}.{name}" for name in without}
    return {name: _column([row.get(name) for row in rows]) for name in names if name not in left_out}


def _column(values: list[Any]) -> list[Any] | pd.Series:
    """Whole numbers stay whole beside empty places."""
    whole = {type(value) for value in values} == {int, type(None)}
    return pd.Series(values, dtype="Int64") if whole else values


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
