"""The interface of a task: random examples with inputs, targets and a mask of the positions that count.

A position of the input holds one or more tokens (`features`), whose embeddings the model adds up. The model gives
`classes` logits per position. Positions that `counted` marks are scored against `targets`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Split = Literal["train", "validation", "test"]
Positions = Literal["none", "learned", "rotary"]
Metric = Literal["accuracy", "bits per byte"]

# The largest difference in a metric that does not matter, unless a plan declares another: two in a hundred answers;
# 0.02 bits per byte, about 1 % of the loss of a small trained model.
MARGINS: Mapping[str, float] = {"accuracy": 0.02, "bits per byte": 0.02}


class Examples(NamedTuple):
    """A number of examples of one task.

    `inputs` are tokens in [0, vocabulary), `targets` classes in [0, classes). Where `counted` is False the target is
    0 and never scored. `level`, where a task has one, is the difficulty of each position (a distance, a depth, a
    number of pairs): accuracy is then also reported per level.
    """

    inputs: Int[Tensor, "count length features"]
    targets: Int[Tensor, "count length"]
    counted: Bool[Tensor, "count length"]
    level: Int[Tensor, "count length"] | None = None


class Task(ABC):
    """What every task has. A task is a frozen dataclass whose fields are its options.

    Attributes:
        name: the name under which `make_task` knows it.
        length: positions per example.
        causal: whether a position may attend only to itself and to those before it.
        positions: the positional information that the task needs by default.
        metric: what is reported. Accuracy is better when higher, bits per byte when lower.
        best: the best score that any model could reach.
    """

    name: ClassVar[str]
    length: int
    causal: bool = False
    positions: Positions = "none"
    metric: Metric = "accuracy"
    best: float = 1.0

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of input tokens."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone. Splits of a task without data have one distribution."""

    @property
    def features(self) -> int:
        """Tokens per position."""
        return 1

    @property
    def classes(self) -> int:
        """Number of output classes: by default one per token."""
        return self.vocabulary

    @property
    def chance(self) -> float:
        """Score of the best answer that ignores the input: by default for classes that are equally likely."""
        return 1 / self.classes

    @property
    def data_hash(self) -> str | None:
        """Identifies the data that examples are taken from. None for a task that makes its examples up."""
        return None

    @property
    def options(self) -> dict[str, Any]:
        """What the task was made with, in plain values that `make_task` takes."""
        return {option.name: vars(self)[option.name] for option in fields(self)}  # type: ignore[arg-type]

    def score(
        self, logits: Float[Tensor, "targets classes"], targets: Int[Tensor, " targets"], split: Split
    ) -> Float[Tensor, " targets"]:
        """The metric of each counted position. `split` is the one that the examples come from."""
        return (logits.argmax(-1) == targets).double()

    def related_positions(self, inputs: Int[Tensor, "count length features"]) -> Int[Tensor, "count length"] | None:
        """The position that each position must attend to. None where the task does not fix it."""
        return None

    def prepare(self, folder: Path) -> dict[str, Any]:
        """Keep the task's data in a file in `folder`. Returns the options with which `make_task` reads it from there.

        Empty for a task without data.
        """
        return {}

    def yardsticks(self, examples: int, generator: torch.Generator, scored: Iterable[Examples]) -> dict[str, float]:
        """Scores on `scored` of simple methods that were fitted on this number of training examples, by name.

        Empty where a task has none.
        """
        return {}


def check_size(task: str, field: str, value: int, least: int, most: int | None = None) -> None:
    """Raise ValueError unless the value is a whole number in [least, most]."""
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        raise ValueError(f"{task}: {field} must be a whole number {bounds}, got {value!r}")


def check_choice(task: str, field: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the known ones."""
    if value not in known:
        raise ValueError(f"{task}: {field} must be one of {', '.join(known)}; got {value!r}")


def permutations(count: int, of: int, generator: torch.Generator) -> Int[Tensor, "count of"]:
    """`count` random orders of 0 .. of-1."""
    return torch.rand(count, of, generator=generator).argsort(dim=1)


def distinct(count: int, number: int, of: int, generator: torch.Generator) -> Int[Tensor, "count number"]:
    """`count` rows of `number` distinct tokens from [0, of). Every ordered choice is equally likely.

    Floyd's sampling (Bentley and Floyd 1987): time and memory grow with `number`, not with `of`.
    """
    chosen = torch.full((count, number), -1)
    for column, newest in enumerate(range(of - number, of)):
        drawn = torch.randint(newest + 1, (count, 1), generator=generator)
        taken = (chosen[:, :column] == drawn).any(dim=1)
        chosen[:, column] = torch.where(taken, newest, drawn[:, 0])
    return chosen.gather(1, permutations(count, number, generator))  # the draws themselves are not in random order
