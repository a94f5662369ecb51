"""`querykey.compare`: train what a plan asks for and is not there yet, then read what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from querykey import machine
from querykey.design import Design
from querykey.spelling import unknown
from querykey.stats.statistics import SeedSchedule
from querykey.study import engines, ray_engine, result, tuning
from querykey.study.config import Config, PlanError
from querykey.study.matching import Match
from querykey.study.plan import Cell, Plan, choose_task, load_plan
from querykey.study.records import Declared, Records, Study, weights_path
from querykey.study.training import Outcome
from querykey.tasks import Task, options_of

Engine = Callable[[Sequence[engines.Work]], Iterator[tuple[Cell, Outcome]]]


@dataclass(frozen=True)
class Progress:
    """One step of a running study: the cell that has just come, and how many there are."""

    study: Study
    done: int
    total: int
    cell: Cell
    outcome: Outcome


def compare(
    plan: str | Path | Plan = "why",
    *,
    tasks: Sequence[str] | None = None,
    designs: Sequence[str | Design] | None = None,
    text: Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    seeds: int | Literal["auto"] | None = None,
    most_seeds: int = 24,
    match: Match | None = None,
    tune: Sequence[float] | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    device: str = "auto",
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    gpus: float = 0.0,
    watch: Callable[[Progress], None] | None = None,
    **config: Any,
) -> result.Result:
    """Train designs × tasks × seeds, paired, and compare them.

    Cells that are under `out` already are not trained again, so that a run which was stopped goes on where it was.

    Args:
        plan: the name of a plan that ships with querykey, a plan file, or a `Plan`.
        tasks: names of tasks instead of the plan's.
        designs: designs instead of the plan's; the first is the baseline.
        text: files, folders, globs or ``hf:NAME[:CONFIG]`` for the task ``text``, instead of Python's standard library.
        tokenizer: a file of the ``tokenizers`` library for the text, instead of bytes.
        seeds: number of paired seeds instead of the plan's; "auto" adds seeds at declared looks (see `SeedSchedule`,
            which says how the error rate is kept) until every verdict is decided or there are `most_seeds`.
        most_seeds: where "auto" ends.
        match: what is equal for all designs instead of the plan's: "width", "parameters" or "flops".
        tune: learning rates to choose from, for each design and task, instead of the plan's; chosen on validation with
            seeds of their own.
        out: the folder of the records; ``runs/NAME`` when not given.
        workers: processes; one per core when not given.
        device: "auto", or any that torch knows.
        engine: "local" processes, or "ray" tasks (extra ``ray``); the records are the same.
        ray_address: of a running Ray cluster; without, Ray makes one of `workers` cores here.
        gpus: share of a GPU that each Ray task asks for.
        watch: called after each cell.
        config: fields of `Config`, such as ``steps=100`` or ``dim=128``, for all tasks.

    Raises:
        ValueError: if the plan, a design, a task, the text or the records cannot be used.
        EngineError: if workers are lost again and again.
    """
    if workers is not None and workers < 1:
        raise PlanError(f"workers must be at least 1, not {workers}")
    growing = seeds == "auto"
    plan = plan if isinstance(plan, Plan) else load_plan(plan)
    asked = adjust(plan, tasks, designs, text, tokenizer, most_seeds if seeds == "auto" else seeds, match, tune, config)
    looks = SeedSchedule.within(asked.seeds).looks if growing else (asked.seeds,)
    device = _device(device)
    made = asked.make_tasks()
    asked.cells(made, device)  # refuses what cannot be, before anything is written
    workers = workers or (machine.cores() if device == "cpu" else 1)
    run: Engine = partial(engines.run_local, workers=workers)
    if engine == "ray":
        run = partial(ray_engine.run_ray, workers=workers, address=ray_address, gpus=gpus)
    elif ray_address is not None or gpus:
        raise PlanError("a Ray address or a share of GPUs is for engine ray: give --engine ray too, or leave it out")
    elif engine != "local":
        raise PlanError(f"engine must be local or ray, not {engine!r}")
    with Records(out or Path("runs") / asked.name, create=True) as records, records.lock():
        asked = _prepared(asked, made, records.folder)
        cells = asked.cells(made, device)
        if asked.tune:
            tried = tuning.grid(cells, asked.tune)
            _train_missing(records, describe(asked, made, tried), tried, run, watch)
            higher = {name: task.metric == "accuracy" for name, task in made.items()}
            chosen = tuning.best_rates(tried, records.cells([cell.key for cell in tried]), higher)
            cells = [tuning.with_rate(cell, chosen[_id(cell)]) for cell in cells]
        wanted: list[Cell] = []
        for before, look in pairwise((0, *looks)):
            still = _undecided(result.read(records.folder)) if before else None
            wanted += [cell for cell in cells if before <= cell.seed < look and (still is None or _id(cell) in still)]
            study = describe(dataclasses.replace(asked, seeds=look), made, wanted)
            records.keep_study(dataclasses.replace(study, looks=list(looks) if growing else []))
            _train_missing(records, study, wanted, run, watch)
            if not _undecided(result.read(records.folder)):
                break
        return result.read(records.folder)


def _prepared(plan: Plan, tasks: dict[str, Task], folder: Path) -> Plan:
    """The plan with the data of its tasks in files beside the records, which all workers share."""
    choices = (
        dataclasses.replace(choice, options={**choice.options, **tasks[choice.name].prepare(folder / "corpora")})
        for choice in plan.tasks
    )
    return dataclasses.replace(plan, tasks=tuple(choices))


def _undecided(found: result.Result) -> set[tuple[str, str]]:
    """The (task, design) that a verdict is still open for, each task's baseline with them."""
    still = {(one.task, one.design) for one in found.comparisons if not one.decided}
    return still | {(task, found.study.designs[0]) for task, _ in still}


def _id(cell: Cell) -> tuple[str, str]:
    return cell.task.name, str(cell.design)


def adjust(
    plan: Plan,
    tasks: Sequence[str] | None = None,
    designs: Sequence[str | Design] | None = None,
    text: Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    seeds: int | None = None,
    match: Match | None = None,
    tune: Sequence[float] | None = None,
    config: dict[str, Any] | None = None,
) -> Plan:
    """A plan with some of it replaced; arguments as in `compare`.

    Raises:
        ValueError: if what replaces it cannot be.
    """
    choices = {choice.name: choice for choice in plan.tasks}
    if tasks is not None:
        choices = {name: choices.get(name) or choose_task(name, {}, {}) for name in tasks}
        if len(choices) < len(tasks):
            raise PlanError(f"each task can be named once, not {' '.join(tasks)}")
    places = {"paths": text and [str(path) for path in text], "tokenizer": tokenizer and str(tokenizer)}
    if given := {name: value for name, value in places.items() if value}:
        texts = {name: choice for name, choice in choices.items() if "paths" in options_of(choice.kind)}
        if not texts:
            raise PlanError(f"a text is given, but no task reads text: {', '.join(choices)}")
        for name, choice in texts.items():
            choices[name] = dataclasses.replace(choice, options={**choice.options, **given})
    known = [field.name for field in dataclasses.fields(Config)]
    for name in config or {}:
        if name not in known:
            raise PlanError(unknown("option", name, known))
    try:
        replaced = [
            dataclasses.replace(choice, config=dataclasses.replace(choice.config, **(config or {})))
            for choice in choices.values()
        ]
    except TypeError as error:
        raise PlanError(f"a field of the config has the wrong type: {error}") from None
    if designs is not None:  # what a task's own choice was made from is gone
        replaced = [dataclasses.replace(choice, designs=None) for choice in replaced]
    return dataclasses.replace(
        plan,
        tasks=tuple(replaced),
        designs=plan.designs if designs is None else tuple(Design.parse(design) for design in designs),
        seeds=plan.seeds if seeds is None else seeds,
        match=plan.match if match is None else match,
        tune=plan.tune if tune is None else tuple(tune),
    )


def describe(plan: Plan, tasks: dict[str, Task], cells: Sequence[Cell]) -> Study:
    """The plan in plain values, for the records."""
    facts = {
        choice.name: {
            "task": choice.kind,
            "metric": tasks[choice.name].metric,
            "chance": tasks[choice.name].chance,
            "best": tasks[choice.name].best,
            "length": tasks[choice.name].length,
            "margin": choice.margin,
            "designs": [*map(str, plan.designs_of(choice))],
        }
        for choice in plan.tasks
    }
    declared = [Declared(cell.key, cell.task.name, str(cell.design), cell.seed) for cell in cells]
    return Study(
        plan.name,
        plan.question,
        [*map(str, plan.designs)],
        facts,
        plan.seeds,
        declared,
        plan.match,
        claims=[claim.plain for claim in plan.claims],
    )


def _train_missing(
    records: Records,
    study: Study,
    cells: Sequence[Cell],
    run: Engine,
    watch: Callable[[Progress], None] | None,
) -> None:
    finished = records.finished()
    wanted = {cell.key: cell for cell in cells}  # a plan may have one cell under two names
    left = [cell for key, cell in wanted.items() if key not in finished]
    # the weights of the first seed are kept, for the report and for whoever opens the run later
    work = [(cell, weights_path(records.folder, cell.key) if cell.seed == 0 else None) for cell in left]
    done = len(wanted) - len(left)
    for cell, outcome in run(work):
        records.add(cell, outcome)
        done += 1
        if watch is not None:
            watch(Progress(study, done, len(wanted), cell, outcome))


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
