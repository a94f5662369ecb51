"""Dyck words: the type of the bracket that must close next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch

from querykey.tasks.task import Examples, Positions, Split, Task, check_choice, check_size


@dataclass(frozen=True)
class Dyck(Task):
    """The type of the next bracket, where it closes (Dyck words of bounded depth, read by a causal model).

    A word opens a bracket at depth 0. It closes one where its depth is `depth`, or as large as the number of positions
    that are left. Elsewhere it does either with probability 1/2. Types are uniform. The target at i is the type of
    bracket i + 1, counted where that one closes: it is the type of the last bracket that is still open. For example,
    with length = 8 and types = 2, "(" and ")" being of type 0, "[" and "]" of type 1:

        input     (   [   ]   [   (   )   ]   )
        target    -   1   -   -   0   1   0   -
        level     -   2   -   -   3   2   1   -

    `level` is the number of open brackets at i. `chance` is 1/types and `best` 1. By default 32 positions, rotary,
    4 types, depth up to 8.
    """

    name = "dyck"

    length: int = 32
    types: int = 4
    depth: int = 8
    positions: Positions = "rotary"

    causal = True

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=2)
        if self.length % 2:
            raise ValueError(f"{self.name}: length must be even, for every bracket is closed; got {self.length}")
        check_size(self.name, "types", self.types, least=2)
        check_size(self.name, "depth", self.depth, least=1)
        check_choice(self.name, "positions", self.positions, get_args(Positions))

    @property
    def vocabulary(self) -> int:
        """The opening brackets, then the closing ones."""
        return 2 * self.types

    @property
    def classes(self) -> int:
        """One per type."""
        return self.types

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
        wish = torch.rand(count, self.length, generator=generator) < 0.5
        types = torch.randint(self.types, (count, self.length), generator=generator)
        opens = torch.empty(count, self.length, dtype=torch.bool)
        heights = torch.empty(count, self.length, dtype=torch.int64)  # after each bracket
        height = torch.zeros(count, 1, dtype=torch.int64)
        stack = torch.zeros(count, self.depth + 1, dtype=torch.int64)
        for i in range(self.length):
            may_open = height < min(self.depth, self.length - i)
            opening = may_open & (wish[:, i : i + 1] | (height == 0))
            closed = stack.gather(1, (height - 1).clamp(min=0))
            types[:, i : i + 1] = torch.where(opening, types[:, i : i + 1], closed)
            stack.scatter_(1, height, types[:, i : i + 1])  # where one closes, this is above what is open
            height = height + torch.where(opening, 1, -1)
            opens[:, i : i + 1], heights[:, i : i + 1] = opening, height
        counted = torch.zeros_like(opens)
        counted[:, :-1] = ~opens[:, 1:]
        tokens = types + torch.where(opens, 0, self.types)
        return Examples(tokens.unsqueeze(-1), types.roll(-1, dims=1) * counted, counted, heights * counted)
