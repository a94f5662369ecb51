"""A plan: which designs are compared on which tasks, over how many seeds, with models of which size.

Plans are TOML files, or Python files with a function `plan()` that gives a `Plan`. `why` and others ship with the
package. A plan expands to cells: one training run each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import runpy
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from querykey.design import Design
from querykey.spelling import hint, unknown
from querykey.study.claims import Claim
from querykey.study.config import Config, Match, PlanError, check
from querykey.study.matching import matched
from querykey.tasks import Task, make_task, options_of

PLACES = ("paths", "tokenizer", "prepared")  # options that say where something lies; the data hash says what it is


@dataclass(frozen=True)
class TaskChoice:
    """A task of a plan: its name, the options that it is made with, and the config of the models.

    `kind` is the name of the task itself, where a plan has it more than once under names of its own. `margin` is a
    difference in the task's metric that does not matter; None takes the metric's. `designs` are those of the plan that
    are tried on it beside the baseline; None for all. `seeds` and `tune` are in place of the plan's, `tune_seeds` is
    how many seeds a learning rate is tried with: one is enough where seeds differ less than rates do.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    margin: float | None = None
    kind: str = ""
    designs: tuple[Design, ...] | None = None
    seeds: int | None = None
    tune: tuple[float, ...] = ()
    tune_seeds: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.name)
        check(f"seeds of {self.name}", self.seeds is None or self.seeds >= 1, "at least 1", self.seeds)
        check_rates(f"tune of {self.name}", self.tune)
        check(f"tune_seeds of {self.name}", self.tune_seeds >= 1, "at least 1", self.tune_seeds)
        number = isinstance(self.margin, int | float)
        positive = self.margin is None or (number and 0 < self.margin < float("inf"))
        check(f"margin of {self.name}", positive, "a positive number", repr(self.margin))

    def completed(self, task: Task) -> TaskChoice:
        """The same with all options of the task, and with its positions where the config leaves them open."""
        config = dataclasses.replace(self.config, positions=self.config.positions or task.positions)
        return dataclasses.replace(self, config=config, options={**self.options, **task.options})


@dataclass(frozen=True)
class Plan:
    """What is compared. The first design is the baseline, to which each other one is compared on each task.

    Args:
        name: what it is called.
        question: what it asks, in a sentence.
        designs: at least one; the first is the baseline.
        tasks: at least one.
        seeds: how many paired seeds.
        match: what is equal for all designs: "width", "parameters" or "flops"; see `matched`.
        tune: learning rates to choose from for each design and task; none: the config's own.
        claims: what is to be judged by the comparisons, stated before they run.

    Raises:
        PlanError: if there are no designs, tasks or seeds, or one of them is there twice.
    """

    name: str
    designs: tuple[Design, ...]
    tasks: tuple[TaskChoice, ...]
    seeds: int = 6
    question: str = ""
    match: Match = "width"
    tune: tuple[float, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        check_rates("tune", self.tune)
        check("seeds", self.seeds >= 1, "at least 1", self.seeds)
        for kind, names in (("designs", [*map(str, self.designs)]), ("tasks", [task.name for task in self.tasks])):
            check(kind, len(names) >= 1, "at least one", "none")
            twice = {name for name in names if names.count(name) > 1}
            check(kind, not twice, "each named once", f"{', '.join(sorted(twice))} more than once")
        for task in self.tasks:
            for design in task.designs or ():
                check(f"designs of {task.name}", design in self.designs, "among the plan's", design)

    @property
    def baseline(self) -> Design:
        """The design that the others are compared to."""
        return self.designs[0]

    @property
    def most_seeds(self) -> int:
        """The number of seeds of the task that has most."""
        return max(choice.seeds or self.seeds for choice in self.tasks)

    def make_tasks(self) -> dict[str, Task]:
        """The tasks by name.

        Raises:
            ValueError: if a task refuses its options or its text.
        """
        return {choice.name: _make(choice) for choice in self.tasks}

    def designs_of(self, choice: TaskChoice) -> tuple[Design, ...]:
        """The designs that are tried on a task, the baseline first."""
        wanted = self.designs if choice.designs is None else choice.designs
        return tuple(design for design in self.designs if design == self.baseline or design in wanted)

    def cells(self, tasks: Mapping[str, Task], device: str = "cpu") -> list[Cell]:
        """All training runs, seed by seed, so that an unfinished study can already be read.

        Raises:
            DesignError: if a design cannot be at a task's sizes.
            PlanError: if a design cannot be matched to the baseline.
        """
        found = []
        for choice in (choice.completed(tasks[choice.name]) for choice in self.tasks):
            task = tasks[choice.name]
            for design in self.designs_of(choice):
                try:
                    choice.config.layout(design)  # refuses what cannot be, before it is matched
                    config = matched(choice.config, design, self.baseline, self.match, task.length)
                except PlanError as error:
                    raise PlanError(f"on {choice.name}, {error}") from None
                own = dataclasses.replace(choice, config=config)
                found.append(Cell(own, design, 0, device, task.data_hash))
        return [
            dataclasses.replace(cell, seed=seed)
            for seed in range(self.most_seeds)
            for cell in found
            if seed < (cell.task.seeds or self.seeds)
        ]


@dataclass(frozen=True)
class Cell:
    """One training run: a design on a task with a seed."""

    task: TaskChoice
    design: Design
    seed: int
    device: str = "cpu"
    data_hash: str | None = None

    @property
    def plain(self) -> dict[str, Any]:
        """All that decides the result, in plain values. A text goes by the hash of its tokens, not by its place."""
        return {
            "task": self.task.kind,
            "options": {name: value for name, value in sorted(self.task.options.items()) if name not in PLACES},
            "design": str(self.design),
            "seed": self.seed,
            "device": self.device.partition(":")[0],
            "data_hash": self.data_hash,
            **dataclasses.asdict(self.task.config),
        }

    @property
    def key(self) -> str:
        """A name for the configuration: the same for the same, on any machine."""
        return hashlib.sha256(json.dumps(self.plain, sort_keys=True).encode()).hexdigest()[:16]


def load_plan(name: str | Path) -> Plan:
    """The plan that ships with the package under this name, or that of a TOML or Python file.

    A Python file is run; its function `plan()` gives a `Plan`.

    Raises:
        PlanError: if there is no such plan, or it cannot be read, with what is wrong in it.
    """
    shipped = {entry.name.removesuffix(".toml"): entry for entry in files(__package__).joinpath("plans").iterdir()}
    path = Path(name)
    if str(name) in shipped:
        return _read_toml(shipped[str(name)].read_text(), str(name))
    for candidate in (path, path.with_suffix(".py"), path.with_suffix(".toml")):
        if candidate.suffix in (".py", ".toml") and candidate.is_file():
            return _run_python(candidate) if candidate.suffix == ".py" else _read_toml(candidate.read_text(), path.stem)
    raise PlanError(
        f"there is no plan {str(name)!r}{hint(str(name), shipped)}; the plans that ship with querykey are "
        f"{', '.join(sorted(shipped))}, and others are files that end in .toml or .py"
    )


def from_mapping(values: Mapping[str, Any], name: str) -> Plan:
    """The plan that plain values describe.

    ``designs`` and ``tasks`` are needed; ``seeds``, ``match``, ``tune``, ``question`` and ``claims`` (by name, see
    `Claim.read`) may be there. ``model`` holds the fields of `Config` that all tasks have in common. Each table of
    ``tasks`` holds a task's own fields, its options, its margin and its number of seeds, with ``task`` the task that it
    is of where the table has another name, and ``designs`` those that are tried on it.

    Raises:
        PlanError: if a key is unknown, or a value is not what it should be.
    """
    try:
        _known(values, ("question", "designs", "seeds", "match", "tune", "model", "tasks", "claims"), "the plan")
        for needed in ("designs", "tasks"):
            check(needed, bool(values.get(needed)), "at least one", "none")
        common = values.get("model", {})
        _known(common, _FIELDS, "[model]")
        designs = tuple(Design.parse(text) for text in values["designs"])
        claims = tuple(Claim.read(*named) for named in values.get("claims", {}).items())
        for claim in claims:
            _check_claim(claim, designs, values["tasks"])
        return Plan(
            name,
            designs,
            tuple(choose_task(task, table, common) for task, table in values["tasks"].items()),
            seeds=values.get("seeds", 6),
            question=values.get("question", ""),
            match=values.get("match", "width"),
            tune=tuple(map(float, values.get("tune", ()))),
            claims=claims,
        )
    except KeyError as error:
        raise PlanError(f"plan {name}: a table lacks the key {error}") from None
    except (TypeError, AttributeError) as error:
        raise PlanError(f"plan {name}: a value has the wrong type: {error}") from None
    except ValueError as error:
        raise PlanError(f"plan {name}: {error}") from None


def choose_task(name: str, table: Mapping[str, Any], common: Mapping[str, Any]) -> TaskChoice:
    """A task with what a plan says of it: its config, its margin, and its options."""
    kind = table.get("task", name)
    config = {key: value for key, value in table.items() if key in _FIELDS}
    options = {key: value for key, value in table.items() if key not in (*_FIELDS, *_OF_PLAN)}
    known = tuple(option for option in options_of(kind) if option != "prepared")
    _known(options, known, f"[tasks.{name}]", listed=dict.fromkeys((*known, *_FIELDS, *_OF_PLAN)))
    if "positions" in known and "positions" in config:  # the task knows what its positions may be
        options["positions"] = config["positions"]
    designs = tuple(map(Design.parse, table["designs"])) if "designs" in table else None
    own = {name: table[name] for name in ("seeds", "tune_seeds") if name in table}
    own["tune"] = tuple(map(float, table.get("tune", ())))
    return TaskChoice(name, options, Config(**{**common, **config}), table.get("margin"), kind, designs, **own)


def check_rates(name: str, rates: tuple[float, ...]) -> None:
    """Raises PlanError where these are no learning rates."""
    check(name, all(0 < rate < float("inf") for rate in rates), "positive learning rates", rates)


def _check_claim(claim: Claim, designs: Iterable[Design], tasks: Iterable[str]) -> None:
    names = [*map(str, designs)]
    for one in claim.predictions:
        compared = names if one.against else names[1:]
        check(f"design of claim {claim.name}", one.design in compared, f"one of {', '.join(compared)}", one.design)
        check(f"against of claim {claim.name}", one.against in ("", *names), f"one of {', '.join(names)}", one.against)
        for task in (*one.tasks, *([one.than] if one.than else [])):
            check(f"task of claim {claim.name}", task in tasks, f"one of {', '.join(tasks)}", task)


_FIELDS = tuple(config.name for config in dataclasses.fields(Config))
_OF_PLAN = ("task", "margin", "designs", "seeds", "tune", "tune_seeds")


def _make(choice: TaskChoice) -> Task:
    """The task, whose metric must be able to differ by the margin.

    Raises:
        ValueError: if the task refuses its options or its text, or the margin is impossible.
    """
    task = make_task(choice.kind, **choice.options)
    if task.metric == "accuracy" and choice.margin is not None:
        check(f"margin of {choice.name}", choice.margin < 1, "below 1, since accuracies are", choice.margin)
    return task


def _read_toml(text: str, name: str) -> Plan:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plan {name} is not TOML: {error}") from None
    return from_mapping(values, name)


def _run_python(path: Path) -> Plan:
    try:
        found = runpy.run_path(str(path))
        plan = found["plan"]() if "plan" in found else None
    except PlanError:
        raise
    except Exception as error:
        raise PlanError(f"the plan {path} raised {type(error).__name__}: {error}") from error
    if not isinstance(plan, Plan):
        raise PlanError(f"the plan {path} must define a function plan() that gives a querykey.study.plan.Plan")
    return plan


def _known(given: Mapping[str, Any], known: Iterable[str], where: str, listed: Iterable[str] = ()) -> None:
    for key in given:
        if key not in known:
            names = tuple(listed) or tuple(known)
            raise PlanError(f"{where}: {unknown('key', key, names)}")
