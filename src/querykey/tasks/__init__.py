"""The tasks that designs are compared on.

`TASKS` names them, `make_task("cycle", length=24)` makes one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from querykey.spelling import unknown
from querykey.tasks.brackets import Dyck
from querykey.tasks.ceiling import Ceiling, argmax_ceiling
from querykey.tasks.corpus import Corpus
from querykey.tasks.recall import Induction, Recall
from querykey.tasks.relations import Cycle, Relation, Shift, Swap
from querykey.tasks.sequences import Copy, Histogram, Reverse, Sort, Sub
from querykey.tasks.task import MARGINS, Examples, Positions, Split, Task
from querykey.tasks.text import MaskedText, Text

__all__ = [
    "MARGINS",
    "TASKS",
    "Ceiling",
    "Copy",
    "Corpus",
    "Cycle",
    "Dyck",
    "Examples",
    "Histogram",
    "Induction",
    "MaskedText",
    "Positions",
    "Recall",
    "Relation",
    "Reverse",
    "Shift",
    "Sort",
    "Split",
    "Sub",
    "Swap",
    "Task",
    "Text",
    "argmax_ceiling",
    "make_task",
    "options_of",
]

TASKS: dict[str, Callable[..., Task]] = {
    "cycle": Cycle,
    "swap": Swap,
    "shift": Shift,
    "induction": Induction,
    "text": Text.read,
    "masked-text": MaskedText.read,
    "relation": Relation,
    "reverse": Reverse,
    "sort": Sort,
    "histogram": Histogram,
    "copy": Copy,
    "sub": Sub,
    "recall": Recall,
    "dyck": Dyck,
}


def make_task(name: str, **options: Any) -> Task:
    """The task of that name; options are its constructor's, as in `make_task("shift", positions="learned")`.

    Raises:
        ValueError: for an unknown name or option, listing the known ones, and for sizes that the task refuses.
    """
    known = options_of(name)
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of task {name}", option, known))
    return TASKS[name](**options)


def options_of(name: str) -> list[str]:
    """The names of the options of a task.

    Raises:
        ValueError: for an unknown task, listing the known ones.
    """
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    return list(inspect.signature(TASKS[name]).parameters)
