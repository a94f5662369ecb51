"""What replaces parts of a plan when it runs, and where its cells are trained."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from querykey.design import Design
from querykey.spelling import unknown
from querykey.study.config import Config, Match, PlanError, check

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Options:
    """What replaces parts of a plan when it runs, and where its cells are trained.

    Args:
        tasks: names of tasks in place of the plan's, such as cycle shift text.
        designs: designs in place of the plan's; the first is the baseline.
        text: files, folders, globs or hf:NAME for the tasks that read text (default: Python's standard library).
        tokenizer: a file of the tokenizers library, in place of bytes.
        seeds: number of paired seeds in place of the plan's; auto adds seeds at declared looks until decided.
        most_seeds: number of seeds at which auto ends.
        match: what is equal for all designs in place of the plan's rule: width, parameters, flops or cache.
        tune: learning rates to choose from, for each design and task, on validation with seeds of their own.
        out: folder of the records and the report (default: runs/PLAN).
        workers: number of processes (default: one per core; 1 on a GPU).
        device: auto, cpu, cuda or any other that torch knows.
        engine: local processes or ray tasks; the records are the same.
        ray_address: HOST:PORT of a running Ray cluster (default: one on this machine).
        gpus: share of a GPU that each Ray task asks for.
    """

    tasks: tuple[str, ...] | None = None
    designs: tuple[Design, ...] | None = None
    text: tuple[str, ...] | None = None
    tokenizer: str | None = None
    seeds: int | Literal["auto"] | None = None
    most_seeds: int = 24
    match: Match | None = None
    tune: tuple[float, ...] | None = None
    out: Path | None = None
    workers: int | None = None
    device: str = "auto"
    engine: Engine = "local"
    ray_address: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        check("workers", self.workers is None or self.workers >= 1, "at least 1", self.workers)
        check("engine", self.engine in ("local", "ray"), "local or ray", repr(self.engine))
        if self.engine == "local" and (self.ray_address is not None or self.gpus):
            raise PlanError(
                "a Ray address or a share of GPUs is for engine ray: give --engine ray too, or leave it out"
            )


def sort_options(given: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Keyword arguments of `compare`, as options of the run and fields of `Config`.

    Raises:
        PlanError: for a name that neither has, or a value that an option cannot have.
    """
    options, config = ([one.name for one in dataclasses.fields(kind)] for kind in (Options, Config))
    for name in given:
        if name not in (*options, *config):
            raise PlanError(unknown("option", name, (*options, *config)))
    readers: dict[str, Callable[[Any], Any]] = {"tasks": str, "designs": Design.parse, "text": str, "tune": float}
    chosen = {name: value for name, value in given.items() if name in options and value is not None}
    chosen |= {name: tuple(map(readers[name], chosen[name])) for name in readers.keys() & chosen.keys()}
    chosen |= {"tokenizer": str(chosen["tokenizer"])} if "tokenizer" in chosen else {}
    chosen |= {"out": Path(chosen["out"])} if "out" in chosen else {}
    return Options(**chosen), {name: value for name, value in given.items() if name in config}


def command_line(plan: str | Path, given: Mapping[str, Any]) -> str:
    """The command that asks for the same study: a plan and keyword arguments of `compare`."""
    words = ["querykey", "compare", str(plan)]
    for name, value in given.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(str, value) if isinstance(value, list | tuple) else [str(value)]
    return shlex.join(words)
