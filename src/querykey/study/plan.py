"""A plan: which designs are compared on which tasks, over how many seeds, with models of which size.

Plans are TOML files, or Python files with a function `plan()` that gives a `Plan`. `why` and others ship with the
package. A plan expands to cells: one training run each.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import runpy
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from querykey.design import Design
from querykey.layout import Layout
from querykey.tasks import TASKS, Positions, Task, make_task


class PlanError(ValueError):
    """A plan that cannot be read or run."""


@dataclass(frozen=True)
class Setting:
    """The size of a cell's model, and how it is trained.

    Args:
        layers, dim, heads, head_dim: of the Transformer.
        mlp: width of its MLP in units of `dim`; 0 for none.
        positions: "none", "learned" or "rotary"; None for what the task asks for.
        dropout: of the attention weights.
        steps: optimiser steps.
        batch: examples per step.
        lr: peak learning rate of AdamW; it rises over `warmup` (a share of the steps) and falls linearly to 0.
        weight_decay: of AdamW.
        evaluations: points of the validation curve.
    """

    layers: int = 2
    dim: int = 64
    heads: int = 4
    head_dim: int | None = None
    mlp: float = 4.0
    positions: Positions | None = None
    dropout: float = 0.0
    steps: int = 300
    batch: int = 32
    lr: float = 1e-2
    weight_decay: float = 0.0
    warmup: float = 0.1
    evaluations: int = 10

    def __post_init__(self) -> None:
        for name in ("layers", "dim", "heads", "steps", "batch", "evaluations"):
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        _check("head_dim", self.head_dim is None or self.head_dim >= 1, "at least 1", self.head_dim)
        _check("lr", self.lr > 0, "above 0", self.lr)
        for name in ("mlp", "weight_decay"):
            _check(name, getattr(self, name) >= 0, "0 or more", getattr(self, name))
        for name in ("dropout", "warmup"):
            _check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1", getattr(self, name))
        for name in ("mlp", "dropout", "lr", "weight_decay", "warmup"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 0 and 0.0 are one setting, with one key
        known = (None, "none", "learned", "rotary")
        _check("positions", self.positions in known, "one of none, learned, rotary", self.positions)

    def layout(self, design: Design) -> Layout:
        """The attention of one layer with this design.

        Raises:
            DesignError: if it cannot be at these sizes.
        """
        return design.resolve(self.dim, self.heads, head_dim=self.head_dim, rotary=self.positions == "rotary")


@dataclass(frozen=True)
class TaskChoice:
    """A task of a plan: its name, the options that it is made with, and the setting that is trained on it.

    `margin` is a difference in the task's metric that does not matter; None takes it from the baseline's seed noise.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    setting: Setting = field(default_factory=Setting)
    margin: float | None = None

    def __post_init__(self) -> None:
        positive = self.margin is None or 0 < self.margin < float("inf")
        _check(f"margin of {self.name}", positive, "a positive number", self.margin)

    def completed(self, task: Task) -> TaskChoice:
        """The same with the positions that the task asks for, where the setting leaves them open."""
        positions = self.setting.positions or task.positions
        return dataclasses.replace(self, setting=dataclasses.replace(self.setting, positions=positions))


@dataclass(frozen=True)
class Plan:
    """What is compared. The first design is the baseline, to which each other one is compared on each task.

    Args:
        name: what it is called.
        question: what it asks, in a sentence.
        designs: at least one; the first is the baseline.
        tasks: at least one.
        seeds: how many paired seeds.

    Raises:
        PlanError: if there are no designs, tasks or seeds, or one of them is there twice.
    """

    name: str
    designs: tuple[Design, ...]
    tasks: tuple[TaskChoice, ...]
    seeds: int = 6
    question: str = ""

    def __post_init__(self) -> None:
        _check("seeds", self.seeds >= 1, "at least 1", self.seeds)
        for kind, names in (("designs", [*map(str, self.designs)]), ("tasks", [task.name for task in self.tasks])):
            _check(kind, len(names) >= 1, "at least one", "none")
            twice = {name for name in names if names.count(name) > 1}
            _check(kind, not twice, "each named once", f"{', '.join(sorted(twice))} more than once")

    @property
    def baseline(self) -> Design:
        """The design that the others are compared to."""
        return self.designs[0]

    def make_tasks(self) -> dict[str, Task]:
        """The tasks by name.

        Raises:
            ValueError: if a task refuses its options or its text.
        """
        return {choice.name: make_task(choice.name, **choice.options) for choice in self.tasks}

    def cells(self, tasks: Mapping[str, Task], device: str = "cpu") -> list[Cell]:
        """All training runs, seed by seed, so that an unfinished study can already be read.

        Raises:
            DesignError: if a design cannot be at a task's sizes.
        """
        complete = [choice.completed(tasks[choice.name]) for choice in self.tasks]
        for choice in complete:
            for design in self.designs:
                choice.setting.layout(design)
        return [
            Cell(choice, design, seed, device, getattr(tasks[choice.name], "data_hash", None))
            for seed in range(self.seeds)
            for choice in complete
            for design in self.designs
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
    def config(self) -> dict[str, Any]:
        """All that decides the result, in plain values. A text goes by its hash and not by where it lies."""
        return {
            "task": self.task.name,
            "options": {name: value for name, value in sorted(self.task.options.items()) if name != "paths"},
            "design": str(self.design),
            "seed": self.seed,
            "device": self.device.partition(":")[0],
            "data_hash": self.data_hash,
            **dataclasses.asdict(self.task.setting),
        }

    @property
    def key(self) -> str:
        """A name for the configuration: the same for the same, on any machine."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:16]


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
        f"there is no plan {str(name)!r}; the plans that ship with querykey are {', '.join(sorted(shipped))}, "
        "and others are files that end in .toml or .py"
    )


def from_mapping(values: Mapping[str, Any], name: str) -> Plan:
    """The plan that plain values describe.

    ``designs`` and ``tasks`` are needed, ``seeds`` and ``question`` may be there. ``model`` holds what the settings of
    all tasks have in common; each table of ``tasks`` holds a task's own, its options and its margin.

    Raises:
        PlanError: if a key is unknown, or a value is not what it should be.
    """
    try:
        _known(values, ("question", "designs", "seeds", "model", "tasks"), "a plan")
        for needed in ("designs", "tasks"):
            _check(needed, bool(values.get(needed)), "at least one", "none")
        common = values.get("model", {})
        _known(common, _SETTINGS, "[model]")
        return Plan(
            name,
            tuple(Design.parse(text) for text in values["designs"]),
            tuple(choose_task(task, table, common) for task, table in values["tasks"].items()),
            seeds=values.get("seeds", 6),
            question=values.get("question", ""),
        )
    except (TypeError, AttributeError) as error:
        raise PlanError(f"plan {name}: a value has the wrong type: {error}") from None
    except ValueError as error:
        raise PlanError(f"plan {name}: {error}") from None


def choose_task(name: str, table: Mapping[str, Any], common: Mapping[str, Any]) -> TaskChoice:
    """A task with what a plan says of it: settings, its margin, and the options that only the task knows."""
    setting = {key: value for key, value in table.items() if key in _SETTINGS}
    options = {key: value for key, value in table.items() if key not in _SETTINGS and key != "margin"}
    if name not in TASKS:
        make_task(name)  # refuses, and lists the known ones
    known = tuple(inspect.signature(TASKS[name]).parameters)
    _known(options, known, f"[tasks.{name}]", listed=(*known, *_SETTINGS, "margin"))
    if "positions" in known and "positions" in setting:  # the task knows what its positions may be
        options["positions"] = setting["positions"]
    return TaskChoice(name, options, Setting(**{**common, **setting}), table.get("margin"))


_SETTINGS = tuple(setting.name for setting in dataclasses.fields(Setting))


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
            near = difflib.get_close_matches(key, names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise PlanError(f"{where} has the unknown key {key!r}{hint}; it may have {', '.join(names)}")


def _check(name: str, good: bool, expected: str, given: object) -> None:
    if not good:
        raise PlanError(f"{name} must be {expected}, not {given}")
