"""What a study found: its cells and its comparisons, a pure function of the records.

result = querykey.compare("why")        result = read("runs/why")
result.cells      one row per cell      result.summary    one row per comparison
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from querykey.design import Design
from querykey.study.plan import Setting
from querykey.study.records import Records, Study
from querykey.study.verdict import Arms, Comparison, Rule, Verdict, compare_family


@dataclass(frozen=True)
class Result:
    """A study and the records of its cells, as many as there are.

    `records` has one row per cell, with the columns of the database; see `cells` for the same laid out flat.
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
        """The cells whose training gave no finite loss."""
        return self.records[self.records["status"] != "finished"]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell: key, configuration, metrics and origin, each in a column of its own."""
        rows = []
        for record in self.records.to_dict("records"):
            row = {name: record[name] for name in ("key", "task", "design", "seed", "status")}
            row |= _flat(record["metrics"]) | {"seconds": record["seconds"], "finished_at": record["finished_at"]}
            row |= {f"config.{name}": value for name, value in _flat(record["config"]).items() if name not in row}
            rows.append(row | {f"origin.{name}": value for name, value in _flat(record["origin"]).items()})
        return pd.DataFrame(rows)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Each design against the baseline on each task, corrected over all that the study declared."""
        baseline, *others = self.study.designs
        family = {(task, design): self._arms(task, design) for task in self.study.tasks for design in others}
        # Drawn from only where there are too many pairs to try all signs; the same records give the same numbers.
        return compare_family(family, baseline, np.random.default_rng(0), rule=self.rule)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per comparison: means, paired difference with interval, p values, and the verdict in words."""
        return pd.DataFrame([comparison.row() for comparison in self.comparisons])

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What each design's attention costs in each task's model: all its layers, one forward pass at its length.

        Columns: ``task``, ``design``, ``parameters``, ``flops``, ``cache_bytes`` per token in float32, and the ratio of
        each to the baseline.
        """
        rows = []
        for _, record in self.records.drop_duplicates(["task", "design"]).iterrows():
            task, design, config = record["task"], record["design"], record["config"]
            setting = _setting(config)
            layout = setting.layout(Design.parse(design))
            length = self.study.tasks[task]["length"]
            numbers = (layout.parameters, layout.flops(length), layout.cache_bytes())
            rows.append((task, design, *(setting.layers * number for number in numbers)))
        names = ["parameters", "flops", "cache_bytes"]
        frame = pd.DataFrame(rows, columns=["task", "design", *names])
        baseline = frame[frame["design"] == self.study.designs[0]].set_index("task")
        for name in names:
            frame[f"{name}_ratio"] = frame[name] / frame["task"].map(baseline[name])
        return frame

    def scores(self, task: str, design: str) -> dict[int, float]:
        """The test scores of a design on a task by seed; a diverged cell is NaN."""
        mine = self.records[(self.records["task"] == task) & (self.records["design"] == design)]
        return {
            int(seed): float(metrics.get("test", np.nan))
            for seed, metrics in zip(mine["seed"], mine["metrics"], strict=True)
        }

    def higher_is_better(self, task: str) -> bool:
        """Whether the task's metric is an accuracy rather than a loss."""
        return bool(self.study.tasks[task]["metric"] == "accuracy")

    def answer(self) -> list[str]:
        """The question answered in plain words, one sentence per design, from the numbers alone."""
        sentences = [self._about(design) for design in self.study.designs[1:]]
        return [*([self.study.question] if self.study.question else []), *self._headline(), *sentences]

    def _repr_html_(self) -> str:
        from querykey.study.report import as_html

        page = as_html(self).replace("&", "&amp;").replace('"', "&quot;")
        return f'<iframe srcdoc="{page}" style="width:100%;height:48rem;border:0" title="querykey report"></iframe>'

    def _arms(self, task: str, design: str) -> Arms:
        return Arms(
            self.scores(task, self.study.designs[0]),
            self.scores(task, design),
            self.higher_is_better(task),
            self.study.tasks[task]["margin"],
        )

    def _headline(self) -> list[str]:
        """Whether one matrix for queries and keys was worse, and whether something smaller than two made up for it."""
        tied = {name: Design.parse(name) for name in self.study.designs[1:]}
        tied = {name: design for name, design in tied.items() if design.shares("q", "k")}
        bare = [name for name, design in tied.items() if not design.core and not design.selfmask]
        if not bare:
            return []
        worse = self._tasks(bare[0], Verdict.BASELINE_BETTER)
        mended = [
            name for name in tied if name not in bare and worse and not self._tasks(name, Verdict.BASELINE_BETTER, among=worse)
            and self._tasks(name, Verdict.EQUIVALENT, Verdict.DESIGN_BETTER, among=worse) == worse
        ]  # fmt: skip
        size = f"In these models, trained from {self.study.seeds} seeds each"
        if not worse:
            return [f"{size}, nothing shows that they do: {bare[0]} is not worse on any of the tasks."]
        tasks = len(self.study.tasks)
        found = f"{size}, yes: {bare[0]} is worse on {_count(len(worse), tasks)} ({', '.join(worse)})."
        if mended:
            found += (
                f" But not a second matrix for each head: {' and '.join(mended)} loses nothing there "
                "beyond the margin." if len(mended) == 1 else
                f" But not a second matrix for each head: {' and '.join(mended)} lose nothing there beyond the margin."
            )  # fmt: skip
        return [found]

    def _tasks(self, design: str, *verdicts: Verdict, among: list[str] | None = None) -> list[str]:
        return [
            c.task for c in self.comparisons
            if c.design == design and c.verdict in verdicts and (among is None or c.task in among)
        ]  # fmt: skip

    def _about(self, design: str) -> str:
        """`q=k,v`: worse on cycle (0.33 against 1.00) and text (2.93 against 2.75 bits per byte); cannot tell on ..."""
        said: dict[str, list[str]] = {}
        for c in self.comparisons:
            if c.design == design:
                unit = "" if self.higher_is_better(c.task) else " bits per byte"
                kind = {Verdict.DESIGN_BETTER: "better on", Verdict.BASELINE_BETTER: "worse on"}.get(c.verdict)
                kind = kind or {Verdict.EQUIVALENT: "no difference beyond the margin on"}.get(
                    c.verdict, "cannot tell on"
                )
                numbers = f"{c.task} ({c.design_mean:.3f} against {c.baseline_mean:.3f}{unit})"
                said.setdefault(kind, []).append(numbers)
        return f"{design}: " + "; ".join(f"{kind} {_and(tasks)}" for kind, tasks in said.items()) + "."


def read(folder: str | Path) -> Result:
    """The result of the study that was run last under a folder.

    Raises:
        RecordsError: if there is none.
    """
    with Records(folder) as records:
        study = records.last_study()
        return Result(study, records.cells([cell.key for cell in study.cells]), Path(folder))


def _setting(config: Mapping[str, Any]) -> Setting:
    return Setting(**{name: config[name] for name in Setting.__dataclass_fields__})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _count(some: int, of: int) -> str:
    return f"all {of} tasks" if some == of else f"{some} of {of} tasks"
