"""What a task is: seed -> inputs, targets, and which positions count.

A position of the input holds one or more symbols (`features`), whose embeddings the model adds up. The model gives
`classes` scores per position; those that `counted` marks are scored against `targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Split = Literal["train", "validation", "test"]
Positions = Literal["none", "learned", "rotary"]


class Examples(NamedTuple):
    """A number of examples of one task.

    `inputs` are symbols in [0, vocabulary), `targets` classes in [0, classes); where `counted` is False the target is
    0 and never scored. `level`, where a task has one, is the difficulty of each position (a distance, a depth, a
    number of pairs): accuracy is then also reported per level.
    """

    inputs: Int[Tensor, "count length features"]
    targets: Int[Tensor, "count length"]
    counted: Bool[Tensor, "count length"]
    level: Int[Tensor, "count length"] | None = None


@runtime_checkable
class Task(Protocol):
    """A task is a frozen dataclass with these fields and `sample`.

    `chance` is the score of the best answer that ignores the input (for text: of the symbol frequencies), `best` the
    highest score that any model could reach; both in the task's `metric`.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def vocabulary(self) -> int:
        """Number of input symbols."""
        ...

    @property
    def features(self) -> int:
        """Symbols per position."""
        ...

    @property
    def classes(self) -> int:
        """Number of output classes."""
        ...

    @property
    def length(self) -> int:
        """Positions per example."""
        ...

    @property
    def causal(self) -> bool:
        """Whether a position may see only itself and what came before."""
        ...

    @property
    def positions(self) -> Positions:
        """The positions that the task needs by default."""
        ...

    @property
    def metric(self) -> Literal["accuracy", "bits per byte"]:
        """What is reported; accuracy is better when higher, bits per byte when lower."""
        ...

    @property
    def chance(self) -> float:
        """Score of the best answer that ignores the input."""
        ...

    @property
    def best(self) -> float:
        """Highest score that any model could reach."""
        ...

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
        ...


def check_size(task: str, field: str, value: int, least: int, most: int | None = None) -> None:
    """Refuse, by ValueError, a size that is no whole number in [least, most]."""
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        raise ValueError(f"{task}: {field} must be a whole number {bounds}, got {value!r}")


def check_choice(task: str, field: str, value: str, known: Sequence[str]) -> None:
    """Refuse, by ValueError, a value that is not one of the known ones."""
    if value not in known:
        raise ValueError(f"{task}: {field} must be one of {', '.join(known)}; got {value!r}")


def permutations(count: int, of: int, generator: torch.Generator) -> Int[Tensor, "count of"]:
    """`count` random orders of 0 .. of-1."""
    return torch.rand(count, of, generator=generator).argsort(dim=1)


def distinct(count: int, number: int, of: int, generator: torch.Generator) -> Int[Tensor, "count number"]:
    """`count` rows of `number` distinct symbols from [0, of), every ordered choice equally likely.

    Floyd's sampling (Bentley and Floyd 1987): time and memory grow with `number`, not with `of`.
    """
    chosen = torch.full((count, number), -1)
    for column, newest in enumerate(range(of - number, of)):
        drawn = torch.randint(newest + 1, (count, 1), generator=generator)
        taken = (chosen[:, :column] == drawn).any(dim=1)
        chosen[:, column] = torch.where(taken, newest, drawn[:, 0])
    return chosen.gather(1, permutations(count, number, generator))  # the draws themselves are not in random order
