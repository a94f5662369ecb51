"""The models that are trained on first use, so that the page has something to show.

Each is a cell of `querykey compare`, kept in the user's cache folder under the name of its configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from querykey.design import Design
from querykey.extras import load as load_extra
from querykey.machine import one_thread
from querykey.study.config import Config
from querykey.study.plan import Cell, TaskChoice
from querykey.study.training import train
from querykey.tasks import make_task

Progress = Callable[[str, int, int], None]  # a step, how much of it is done, of how much
ONE_HEAD = Config(layers=1, dim=32, heads=1, head_dim=16, mlp=0, steps=300)
TEXT = Config(layers=2, dim=64, heads=4, steps=600, batch=16, lr=5e-3)


@dataclass(frozen=True)
class Recipe:
    """A model that is trained here: a design on a task."""

    task: str
    design: str
    config: Config

    def cell(self) -> Cell:
        """The training run."""
        task = make_task(self.task)
        choice = TaskChoice(self.task, {}, self.config).completed(task)
        return Cell(choice, Design.parse(self.design), 0, "cpu", task.data_hash)


RECIPES = {
    "cycle": Recipe("cycle", "q,k,v", ONE_HEAD),
    "cycle-tied": Recipe("cycle", "q=k,v", ONE_HEAD),
    "bytes": Recipe("text", "q,k,v", TEXT),
}


def trained(name: str, progress: Progress = lambda step, done, total: None) -> Path:
    """The weights of one of `RECIPES`, trained now if they are not there yet; `progress` is told each step.

    One thread: these models are so small that a second one costs more than it gives.
    """
    cell = RECIPES[name].cell()
    path = cache() / f"{name}-{cell.key}.safetensors"
    if path.exists():
        return path
    with one_thread():
        train(cell, path, watch=lambda step: progress("train", step, cell.task.config.steps))
    return path


def cache() -> Path:
    """Where trained models are kept: QUERYKEY_CACHE, or the user's cache folder."""
    chosen = os.environ.get("QUERYKEY_CACHE")
    return Path(chosen) if chosen else Path(load_extra("platformdirs", "explore").user_cache_dir("querykey"))
