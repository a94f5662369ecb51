"""Sequence to sequence of the same length, inside an encoder: what is asked of every position of random tokens.

`Reverse`, `Sort`, `Copy` and `Sub` are those of Kayyam et al. (2026, arXiv 2606.04032), ten symbols, lengths 16, 64
and 128 in their table; `Histogram` is that of Friedman et al. (2023, arXiv 2306.01128).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.distributions import Binomial

from querykey.tasks.task import Examples, Positions, Split, check_size


@dataclass(frozen=True)
class _Sequence(ABC):
    """Uniform independent tokens; every position is counted."""

    name: ClassVar[str]
    positions: ClassVar[Positions] = "learned"

    length: int = 16
    symbols: int = 10

    features: ClassVar[int] = 1
    causal: ClassVar[bool] = False
    metric: ClassVar[Literal["accuracy"]] = "accuracy"
    best: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=2)
        check_size(self.name, "symbols", self.symbols, least=2)

    @property
    def vocabulary(self) -> int:
        """The symbols."""
        return self.symbols

    @property
    def classes(self) -> int:
        """One per symbol."""
        return self.symbols

    @property
    def chance(self) -> float:
        """1/symbols: each target is one of the tokens, all equally likely."""
        return 1 / self.symbols

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone; every split has the same distribution."""
        tokens = torch.randint(self.symbols, (count, self.length), generator=generator)
        return Examples(tokens.unsqueeze(-1), self._answer(tokens), torch.ones_like(tokens, dtype=torch.bool))

    @abstractmethod
    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]: ...


@dataclass(frozen=True)
class Reverse(_Sequence):
    """The sequence backwards: positions in pairs that must read each other.

        input     3   1   4   1   5
        target    5   1   4   1   3

    `chance` is 1/symbols and `best` 1. It has no `level`. By default 16 positions, learned, and 10 symbols.
    """

    name: ClassVar[str] = "reverse"

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return tokens.flip(1)


@dataclass(frozen=True)
class Sort(_Sequence):
    """The same tokens in ascending order.

        input     3   1   4   1   5
        target    1   1   3   4   5

    `chance` is above 1/symbols, for the first positions are likely low and the last high: the best fixed answer at
    rank i is the mode of the i-th order statistic, P(X_(i) ≤ v) = P(Binomial(length, (v+1)/symbols) ≥ i), and
    `chance` is the mean of its probability over i. `best` is 1. It has no `level`. Defaults as in `Reverse`.
    """

    name: ClassVar[str] = "sort"

    @property
    def chance(self) -> float:
        """Mean over the ranks of the probability of the likeliest token."""
        at_most = [_binomial_tail(self.length, value / self.symbols) for value in range(1, self.symbols)]
        never, always = torch.zeros(self.length).double(), torch.ones(self.length).double()
        return float(torch.stack([never, *at_most, always]).diff(dim=0).max(dim=0).values.mean())

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return tokens.sort(dim=1).values


@dataclass(frozen=True)
class Histogram(_Sequence):
    """How often the position's own token stands in the sequence, from 1 to length; class 0 is never the target.

        input     3   1   4   1   5
        target    1   2   1   2   1

    `chance` is the probability of the likeliest count, 1 + Binomial(length − 1, 1/symbols). `best` is 1. It has no
    `level`, and no positional information because none is needed. By default 16 positions and 10 symbols.
    """

    name: ClassVar[str] = "histogram"
    positions: ClassVar[Positions] = "none"

    @property
    def classes(self) -> int:
        """Counts from 0 to length."""
        return self.length + 1

    @property
    def chance(self) -> float:
        """Probability of the likeliest count."""
        others = Binomial(self.length - 1, torch.tensor(1 / self.symbols, dtype=torch.float64))
        return float(others.log_prob(torch.arange(self.length).double()).exp().max())

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        counts = torch.zeros(len(tokens), self.symbols, dtype=torch.int64)
        return counts.scatter_add_(1, tokens, torch.ones_like(tokens)).gather(1, tokens)


@dataclass(frozen=True)
class Copy(_Sequence):
    """The sequence itself: what attention must not get in the way of.

        input     3   1   4   1   5
        target    3   1   4   1   5

    `chance` is 1/symbols and `best` 1. It has no `level`. Defaults as in `Reverse`.
    """

    name: ClassVar[str] = "copy"

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return tokens.clone()


@dataclass(frozen=True)
class Sub(_Sequence):
    """One fixed substitution, symbols − 1 − x: a table of tokens, where no position needs another.

        input     3   1   4   1   5
        target    6   8   5   8   4

    `chance` is 1/symbols and `best` 1. It has no `level`. Defaults as in `Reverse`.
    """

    name: ClassVar[str] = "sub"

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return self.symbols - 1 - tokens


def _binomial_tail(n: int, p: float) -> Tensor:
    """P(Binomial(n, p) ≥ i) for i = 1 .. n."""
    pmf: Tensor = Binomial(n, torch.tensor(p, dtype=torch.float64)).log_prob(torch.arange(n + 1).double()).exp()
    return pmf.flip(0).cumsum(0).flip(0)[1:]
