"""`querykey.compare`: train the missing cells of a plan, then read the result."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch

from querykey import machine
from querykey.stats.statistics import SeedSchedule
from querykey.study import engines, ray_engine, report, tuning
from querykey.study.config import PlanError
from querykey.study.options import Options, command_line, sort_options
from querykey.study.plan import Cell, Plan, TaskChoice, choose_task, load_plan
from querykey.study.records import Declared, Records, Study, weights_path
from querykey.study.training import Outcome
from querykey.study.yardsticks import yardsticks
from querykey.tasks import MARGINS, Task, options_of

_LOG = logging.getLogger("querykey")
Run = Callable[[Sequence[engines.Work]], Iterator[tuple[Cell, Outcome]]]


@dataclass(frozen=True)
class Progress:
    """One step of a running study: a finished cell, and how many there are."""

    study: Study
    done: int
    total: int
    cell: Cell
    outcome: Outcome


Watch = Callable[[Progress], None]


def compare(plan: str | Path | Plan = "why", *, watch: Watch | None = None, **options: Any) -> report.Report:
    """Train designs × tasks × seeds, paired, and compare them.

    Cells whose records are in the output folder are not trained again, so the same call resumes a stopped run.

    Args:
        plan: the name of a plan that ships with querykey, a plan file, or a `Plan`.
        watch: called after each cell.
        options: fields of `Options`, such as ``designs=["q,k,v", "q=k,v"]`` or ``seeds=8``, and of `Config`, such as
            ``steps=100`` or ``dim=128``, which hold for all tasks.

    Raises:
        ValueError: if the plan, a design, a task, the text or the records cannot be used.
        EngineError: if workers are lost again and again.
    """
    asked = adjust(plan if isinstance(plan, Plan) else load_plan(plan), **options)
    chosen, _ = sort_options(options)
    device = _device(chosen.device)
    tasks = asked.make_tasks()
    asked.cells(tasks, device)  # raises for impossible designs before anything is written
    with Records(chosen.out or Path("runs") / asked.name, create=True) as records, records.lock():
        asked = _prepared(asked, tasks, records.folder)
        facts = facts_of(asked, tasks, records.folder)
        command = "" if isinstance(plan, Plan) else command_line(plan, options)
        training = _Training(asked, facts, records, _engine(chosen, device), watch, command)
        study = training.grow(training.tuned(asked.cells(tasks, device)), chosen.seeds == "auto")
        return report.read(records.folder, study)


def adjust(plan: Plan, **changes: Any) -> Plan:
    """A plan with the parts replaced that the changes name: fields of `Options` and of `Config`.

    Raises:
        ValueError: if a name is unknown, or a replacement is impossible.
    """
    options, config = sort_options(changes)
    choices = {choice.name: choice for choice in plan.tasks}
    if options.tasks is not None:
        choices = {name: choices.get(name) or choose_task(name, {}, {}) for name in options.tasks}
        if len(choices) < len(options.tasks):
            raise PlanError(f"each task can be named once, not {' '.join(options.tasks)}")
    replaced = [_replaced(choice, config) for choice in _with_text(list(choices.values()), options)]
    if options.designs is not None:  # the designs of a task were chosen from the plan's
        replaced = [dataclasses.replace(choice, designs=None) for choice in replaced]
    if options.seeds is not None:  # one number for all tasks
        replaced = [dataclasses.replace(choice, seeds=None) for choice in replaced]
    if options.tune is not None:
        replaced = [dataclasses.replace(choice, tune=()) for choice in replaced]
    seeds = options.most_seeds if options.seeds == "auto" else options.seeds
    return dataclasses.replace(
        plan,
        tasks=tuple(replaced),
        designs=plan.designs if options.designs is None else options.designs,
        seeds=plan.seeds if seeds is None else seeds,
        match=options.match or plan.match,
        tune=plan.tune if options.tune is None else options.tune,
    )


def facts_of(plan: Plan, tasks: Mapping[str, Task], folder: Path) -> dict[str, dict[str, Any]]:
    """What a report needs to know of each task, by name; see `Study`. Yardsticks are kept in `folder`."""
    return {
        choice.name: {
            "task": choice.kind,
            "metric": task.metric,
            "chance": task.chance,
            "best": task.best,
            "length": task.length,
            "causal": task.causal,
            "margin": choice.margin or MARGINS[task.metric],
            "designs": [*map(str, plan.designs_of(choice))],
            "yardsticks": yardsticks(task, choice.config, folder / "corpora"),
        }
        for choice, task in ((choice, tasks[choice.name]) for choice in plan.tasks)
    }


def describe(plan: Plan, facts: Mapping[str, dict[str, Any]], cells: Sequence[Cell]) -> Study:
    """The plan in plain values, for the records."""
    declared = [Declared(cell.key, cell.task.name, str(cell.design), cell.seed) for cell in cells]
    return Study(
        plan.name,
        plan.question,
        [*map(str, plan.designs)],
        dict(facts),
        plan.seeds,
        declared,
        plan.match,
        claims=[claim.plain for claim in plan.claims],
    )


@dataclass(frozen=True)
class _Training:
    """A plan whose cells are being trained into records."""

    plan: Plan
    facts: Mapping[str, dict[str, Any]]
    records: Records
    run: Run
    watch: Watch | None
    command: str

    def tuned(self, cells: list[Cell]) -> list[Cell]:
        """The cells at the learning rate that is best on validation, if the plan asks for a choice."""
        tried = tuning.grid(cells, self.plan.tune)
        if not tried:
            return cells
        self._train(describe(self.plan, self.facts, tried), tried)
        higher = {name: facts["metric"] == "accuracy" for name, facts in self.facts.items()}
        chosen = tuning.best_rates(tried, self.records.cells([cell.key for cell in tried]), higher)
        return [tuning.with_rate(cell, chosen[_id(cell)]) if _id(cell) in chosen else cell for cell in cells]

    def grow(self, cells: list[Cell], growing: bool) -> Study:
        """Train all seeds at once or, if `growing`, from look to look until every verdict is decided.

        A part of the study that the folder keeps leaves that study, and its report, as they are.
        """
        looks = SeedSchedule.within(self.plan.seeds).looks if growing else (self.plan.most_seeds,)
        part = self._is_part(cells)
        wanted: list[Cell] = []
        still: set[tuple[str, str]] | None = None
        for before, look in pairwise((0, *looks)):
            wanted += [cell for cell in cells if before <= cell.seed < look and (still is None or _id(cell) in still)]
            plan = dataclasses.replace(self.plan, seeds=look) if growing else self.plan
            study = describe(plan, self.facts, wanted)
            study = dataclasses.replace(study, looks=list(looks) if growing else [], command=self.command)
            if not part:
                self.records.keep_study(study)
            self._train(study, wanted)
            if growing and not (still := self._undecided(study)):
                break
        return study

    def _is_part(self, cells: Sequence[Cell]) -> bool:
        """Whether the folder keeps a study with all these cells and more. The report of a third study is renamed."""
        if not self.records.asked():
            return False
        last, keys = self.records.last_study(), {cell.key for cell in cells}
        if last.contains(keys):
            _LOG.warning("%s keeps a larger study, of which this is a part", self.records.folder)
            return True
        path = self.records.folder / "report.html"
        if path.exists() and not {cell.key for cell in last.cells} <= keys:
            free = next(one for n in count(1) if not (one := path.with_name(f"report-{n}.html")).exists())
            path.rename(free)
            _LOG.warning("the report of the study that was here before is now %s", free)
        return False

    def _train(self, study: Study, cells: Sequence[Cell]) -> None:
        """Train the cells that the records lack."""
        finished = self.records.finished()
        wanted = {cell.key: cell for cell in cells}  # a plan may have one cell under two names
        left = [cell for key, cell in wanted.items() if key not in finished]
        # the weights of the first seed are kept, for the report and for `explore`
        work = [(cell, weights_path(self.records.folder, cell.key) if cell.seed == 0 else None) for cell in left]
        for done, (cell, outcome) in enumerate(self.run(work), start=len(wanted) - len(left) + 1):
            self.records.add(cell, outcome)
            if self.watch is not None:
                self.watch(Progress(study, done, len(wanted), cell, outcome))

    def _undecided(self, study: Study) -> set[tuple[str, str]]:
        """The (task, design) pairs without a verdict yet, with the baseline of each of their tasks."""
        found = report.read(self.records.folder, study)
        still = {(one.task, one.design) for one in found.comparisons if not one.decided}
        return still | {(task, found.study.designs[0]) for task, _ in still}


def _with_text(choices: list[TaskChoice], options: Options) -> list[TaskChoice]:
    """The same tasks; those that read text read the given one."""
    places = {"paths": options.text and [*options.text], "tokenizer": options.tokenizer}
    given = {name: value for name, value in places.items() if value}
    reading = [choice.name for choice in choices if "paths" in options_of(choice.kind)]
    if given and not reading:
        raise PlanError(f"a text is given, but no task reads text: {', '.join(choice.name for choice in choices)}")
    return [
        dataclasses.replace(choice, options={**choice.options, **given}) if choice.name in reading else choice
        for choice in choices
    ]


def _replaced(choice: TaskChoice, config: Mapping[str, Any]) -> TaskChoice:
    """The same task with other fields of its config; the task itself checks positions."""
    try:
        replaced = dataclasses.replace(choice.config, **config)
    except TypeError as error:
        raise PlanError(f"a field of the config has the wrong type: {error}") from None
    options = {name: config[name] for name in ("positions",) if name in config and name in options_of(choice.kind)}
    return dataclasses.replace(choice, config=replaced, options={**choice.options, **options})


def _prepared(plan: Plan, tasks: Mapping[str, Task], folder: Path) -> Plan:
    """The plan with the data of its tasks in files beside the records, which all workers share."""
    choices = (
        dataclasses.replace(choice, options={**choice.options, **tasks[choice.name].prepare(folder / "corpora")})
        for choice in plan.tasks
    )
    return dataclasses.replace(plan, tasks=tuple(choices))


def _engine(options: Options, device: str) -> Run:
    workers = options.workers or (machine.cores() if device == "cpu" else 1)
    if options.engine == "local":
        return partial(engines.run_local, workers=workers)
    return partial(ray_engine.run_ray, workers=workers, address=options.ray_address, gpus=options.gpus)


def _device(name: str) -> str:
    """The device to train on.

    Raises:
        PlanError: if torch does not know it, or it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise PlanError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return name


def _id(cell: Cell) -> tuple[str, str]:
    return cell.task.name, str(cell.design)
